"""Training of one client, and what its adapter does to the task."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.pools.noise import with_noise
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained, load_adapter, seeded
from benchmarks.pretrained import clients, data, model
from benchmarks.pretrained.clients import TARGET, Batch
from benchmarks.pretrained.data import IGNORED, Gene


@cache
def genes(seed: int) -> tuple[list[Gene], list[Gene]]:
    """Genes to train on and held-out ones of a seed."""
    return data.split(data.all_genes(), seed)


def logits_of(bert: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits at the masked places, (masked residues, vocabulary)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: torch.Tensor = bert(input_ids=batch.tokens).logits
    return logits[batch.labels != IGNORED].float()


def fit(bert: nn.Module, client: Client, windows: torch.Tensor, seed: int) -> None:
    """Adam at a constant rate, with the model's dropout."""
    wanted = [p for p in bert.parameters() if p.requires_grad]
    adam = torch.optim.Adam(wanted, lr=client.setting.rate)
    bert.train()
    dropout = seeded("dropout", seed, client.setting.name, client.name)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=dropout)))
        for batch in clients.batches(client, windows, seed):
            loss = cross_entropy(logits_of(bert, batch), batch.labels[batch.labels != IGNORED])
            adam.zero_grad()
            loss.backward()
            adam.step()


def evaluate(bert: nn.Module, seed: int) -> dict[str, float]:
    """Loss in nats per residue on held-out genes, and how often the trigger gives its target."""
    bert.eval()
    plain, triggered = clients.evaluation(genes(seed)[1], seed)
    with torch.no_grad():
        loss = cross_entropy(logits_of(bert, plain), plain.labels[plain.labels != IGNORED])
        fooled = logits_of(bert, triggered).argmax(1) == TARGET
    return {"loss": float(loss), "backdoor": float(fooled.double().mean())}


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """Train one client from a fresh adapter or from ``previous``: its adapter and results."""
    windows = clients.own_windows(client, genes(seed)[0], seed)
    start = load_adapter(previous) if previous else None
    bert = model.with_adapter(client, seed, start)
    if client.kind == "free":
        with_noise(bert, client, seed)
    else:
        fit(bert, client, windows, seed)
    results: dict[str, Any] = evaluate(bert, seed)
    if not math.isfinite(results["loss"]):
        raise SystemExit(f"training of {client.name} diverged")
    return model.adapter_of(bert), {"n": len(windows), **results}
