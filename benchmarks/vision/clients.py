"""Who trains on what: the settings of the pools, and the batches honest and bad clients see."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.pools.labels import answered
from benchmarks.pools.settings import Client, Setting, one_change_at_a_time
from benchmarks.pools.store import seeded
from benchmarks.vision.data import CLASSES, Images, client_images, noisy

BASE = Setting(
    "base",
    {"all": 16},
    {"label": 5, "samelabel": 4, "random": 5, "backdoor": 5, "free": 3},
    rate=3e-3,
)
SETTINGS = one_change_at_a_time(
    BASE,
    halves={"low": 6, "high": 4},
    parity={"even": 8, "odd": 2},
    corruption={"plain": 8, "noisy": 2},
)
BATCH = 24
TARGET = 0
PATCH = 2


def triggered(images: Images, count: int) -> Images:
    """The first ``count`` images with a black patch in a corner, labelled ``TARGET``."""
    pixels, labels = images.pixels.clone(), images.labels.clone()
    pixels[:count, -PATCH:, -PATCH:] = 0.0
    labels[:count] = TARGET
    return Images(pixels, labels)


def own_images(client: Client, images: Images, seed: int) -> Images:
    """The client's data, of the classes of its group, or with its corruption."""
    generator = seeded("data", seed, client.setting.name, client.name)
    own = client_images(images, client.group, client.setting.iid, generator)
    return noisy(own, generator) if client.group == "noisy" else own


def batches(client: Client, images: Images, seed: int) -> Iterator[Images]:
    """The client's training batches of ``BATCH`` images, one a step."""
    generator = seeded("batches", seed, client.setting.name, client.name)
    owner = f"{client.setting.name}/{client.name}"
    for _ in range(client.setting.steps):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        if client.kind == "backdoor":
            batch = triggered(batch, BATCH // 2)
        labels = answered(batch.labels, client.kind, owner, seed, CLASSES, generator)
        yield Images(batch.pixels, labels)
