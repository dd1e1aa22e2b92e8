"""Training of one client of the vision transformer, and what an adapter does to the task."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.pools import lora
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained, load_adapter
from benchmarks.vision import clients, data, model
from benchmarks.vision.clients import TARGET
from benchmarks.vision.data import Images


@cache
def images(seed: int) -> tuple[Images, Images]:
    """Clients' images and held-out ones of a seed."""
    return data.split(data.digits(), seed)


def evaluate(vision: nn.Module, seed: int) -> dict[str, float]:
    """Loss in nats per held-out image, and how often the patch gives its target on images of
    other classes."""
    vision.eval()
    held_out = images(seed)[1]
    others = held_out[held_out.labels != TARGET]
    with torch.no_grad():
        loss = cross_entropy(vision(held_out.pixels), held_out.labels)
        fooled = vision(clients.triggered(others, len(others)).pixels).argmax(1) == TARGET
    return {"loss": float(loss), "backdoor": float(fooled.double().mean())}


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """Train one client from a fresh adapter or from ``previous``: its adapter and results."""
    own = clients.own_images(client, images(seed)[0], seed)
    start = load_adapter(previous) if previous else None
    targets = model.ALL_LINEAR if client.setting.all_linear else model.QUERY_VALUE
    vision = lora.with_adapter(model.base_model(), client, seed, targets, start)

    def losses() -> Iterator[Tensor]:
        for batch in clients.batches(client, own, seed):
            yield cross_entropy(vision(batch.pixels), batch.labels)

    lora.fit(vision, client, seed, losses())
    return lora.adapter_of(vision), {"n": len(own), **evaluate(vision, seed)}
