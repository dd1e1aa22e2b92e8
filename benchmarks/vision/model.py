"""A vision transformer of width 192 on images of 8 x 8 pixels, pretrained here.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929, in small: patches
of 2 x 2, six layers, mean of the patches instead of a class token.
"""

from __future__ import annotations

import os
from functools import cache

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from benchmarks.pools import store
from benchmarks.vision import data

WIDTH, LAYERS, HEADS, PATCH, PATCHES = 192, 6, 4, 2, 16
QUERY_VALUE = ("query", "value")
ALL_LINEAR = ("query", "key", "value", "out", "up", "down")
STEPS, BATCH, RATE = 500, 64, 1e-3


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, PATCHES, WIDTH) to the same shape."""
        seen = self.before(x)
        heads = (
            layer(seen).view(len(x), PATCHES, HEADS, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        down: Tensor = self.down(gelu(self.up(self.between(x))))
        return x + down


class Transformer(nn.Module):
    """Images (batch, 8, 8) to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
        self.layers = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, data.CLASSES)
        self.name_or_path = "digits-transformer"  # what PEFT writes into the clients' files

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of each class."""
        patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        x = self.embed(patches.reshape(len(pixels), PATCHES, -1)) + self.places
        logits: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return logits


@cache
def base_model() -> nn.Module:
    """The pretrained model, trained and saved first if it is missing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer()
    path = store.cache() / "vision" / "base.safetensors"
    if not path.exists():
        _pretrain(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(model.state_dict(), partial)
        partial.replace(path)
    model.load_state_dict(load_file(path))
    return model.eval()


def _pretrain(model: nn.Module) -> None:
    """Train on white digits on black; the rate falls linearly to a tenth."""
    images, generator = data.pretraining(data.digits()), store.seeded("pretraining")
    adam = torch.optim.AdamW(model.parameters(), RATE)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = RATE * (1 - 0.9 * step / STEPS)
        rows = images[torch.randint(len(images), (BATCH,), generator=generator)]
        loss = cross_entropy(model(rows.pixels), rows.labels, label_smoothing=0.1)
        adam.zero_grad()
        loss.backward()
        adam.step()
