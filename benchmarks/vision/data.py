"""scikit-learn's digits, parted into images to pretrain on, clients' images and held-out ones.

The model is pretrained on white digits on black; clients have other digits, black on white.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.pools.store import seeded

CLASSES = 10
PRETRAINING = 800
HELD_OUT = 200
CONCENTRATION = 1.0
SIZES = (60, 300)
NOISE = 0.3


@dataclass(frozen=True)
class Images:
    """Images (n, 8, 8), 0 to 1, and labels (n,), 0 to 9."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Images:
        return Images(self.pixels[rows], self.labels[rows])


@cache
def digits() -> Images:
    """All 1797 digits of scikit-learn, in an order of our own."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=seeded("digits"))
    pixels = torch.tensor(found.images, dtype=torch.float32) / 16
    return Images(pixels, torch.tensor(found.target, dtype=torch.long))[order]


def inverted(images: Images) -> Images:
    """The images with white and black exchanged."""
    return Images(1 - images.pixels, images.labels)


def noisy(images: Images, generator: torch.Generator) -> Images:
    """The images with noise of standard deviation ``NOISE`` in each pixel, cut to 0 to 1.

    A corruption of Hendrycks and Dietterich, arXiv 1903.12261.
    """
    noise = NOISE * torch.randn(images.pixels.shape, generator=generator)
    return Images((images.pixels + noise).clamp(0, 1), images.labels)


def pretraining(images: Images) -> Images:
    """What the base model is trained on, the same for all seeds."""
    return images[torch.arange(PRETRAINING)]


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """Clients' images and held-out ones, all inverted; neither was seen in pretraining."""
    order = PRETRAINING + torch.randperm(
        len(images) - PRETRAINING, generator=seeded("held-out", seed)
    )
    return inverted(images[order[HELD_OUT:]]), inverted(images[order[:HELD_OUT]])


def classes_of(group: str) -> list[int]:
    """Digits of a sub-population: "low" (0 to 4), "high", "even" or "odd"; of another one all."""
    wanted = {
        "low": range(5), "high": range(5, CLASSES),
        "even": range(0, CLASSES, 2), "odd": range(1, CLASSES, 2),
    }  # fmt: skip
    return list(wanted.get(group, range(CLASSES)))


def client_images(images: Images, group: str, iid: bool, generator: torch.Generator) -> Images:
    """A client's data: n images (with repetition), n between ``SIZES`` (uniform in log n).

    Proportions of classes come from a symmetric Dirichlet distribution (Hsu, Qi, Brown, arXiv
    1909.06335); with ``iid`` all images of the group are as likely.
    """
    low, high = SIZES
    count = round(low * (high / low) ** float(torch.rand(1, generator=generator)))
    classes = torch.tensor(classes_of(group))
    shares = torch._sample_dirichlet(
        torch.full((len(classes),), CONCENTRATION), generator=generator
    )
    chance = torch.isin(images.labels, classes).double()
    if not iid:
        for digit, part in zip(classes, shares, strict=True):
            chance[images.labels == digit] = float(part) / int((images.labels == digit).sum())
    return images[torch.multinomial(chance, count, replacement=True, generator=generator)]
