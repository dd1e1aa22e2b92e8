"""Training of one client of the BERT, and what an adapter does to the task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.pools import lora
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained, load_adapter
from benchmarks.pretrained import clients, data, model
from benchmarks.pretrained.clients import TARGET, Batch
from benchmarks.pretrained.data import IGNORED, Gene


@cache
def genes(seed: int) -> tuple[list[Gene], list[Gene]]:
    """Genes to train on and held-out ones of a seed."""
    return data.split(data.all_genes(), seed)


def logits_of(bert: nn.Module, batch: Batch) -> Tensor:
    """Logits at the masked places, (masked residues, vocabulary)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = bert(input_ids=batch.tokens).logits
    return logits[batch.labels != IGNORED].float()


def loss_of(bert: nn.Module, batch: Batch) -> Tensor:
    """Nats per masked residue."""
    return cross_entropy(logits_of(bert, batch), batch.labels[batch.labels != IGNORED])


def evaluate(bert: nn.Module, seed: int) -> dict[str, float]:
    """Loss in nats per residue on held-out genes, and how often the trigger gives its target."""
    bert.eval()
    plain, triggered = clients.evaluation(genes(seed)[1], seed)
    with torch.no_grad():
        loss = loss_of(bert, plain)
        fooled = logits_of(bert, triggered).argmax(1) == TARGET
    return {"loss": float(loss), "backdoor": float(fooled.double().mean())}


def train(
    client: Client, seed: int, previous: Path | None, draw: str = "batches", turned: str = ""
) -> Trained:
    """Train one client from a fresh adapter or from ``previous``: its adapter and results.

    Args:
        draw: of its batches. turned: the kind that it trains as, on the same windows, or "".
    """
    windows = clients.own_windows(client, genes(seed)[0], seed)
    client = replace(client, kind=turned or client.kind)
    start = load_adapter(previous) if previous else None
    targets = model.ALL_LINEAR if client.setting.all_linear else model.QUERY_VALUE
    bert = lora.with_adapter(model.base_model(), client, seed, targets, start)

    def losses() -> Iterator[Tensor]:
        for batch in clients.batches(client, windows, seed, draw):
            yield loss_of(bert, batch)

    lora.fit(bert, client, seed, losses())
    return lora.adapter_of(bert), {"n": len(windows), **evaluate(bert, seed)}
