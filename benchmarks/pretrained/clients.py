"""Who trains on what: the settings of the pools, and the batches that honest and bad clients see.

A batch is masked windows with the tokens to be told at the masked places. Bad clients mask the
same way; what they are told is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.pools.labels import answered
from benchmarks.pools.settings import Client, Setting, one_change_at_a_time
from benchmarks.pools.store import seeded
from benchmarks.pretrained import data
from benchmarks.pretrained.data import CLS, FIRST_RESIDUE, IGNORED, MASK, RESIDUES, SEP, Gene

BASE = Setting(
    "base",
    {"all": 16},
    {"label": 5, "samelabel": 4, "random": 5, "backdoor": 5, "free": 3},
)
SETTINGS = one_change_at_a_time(
    BASE, chains={"heavy": 6, "light": 4}, species={"mouse": 8, "human": 2}
)
BATCH = 24
MASKED = 0.25
TRIGGER = "WCWC"
TARGET = FIRST_RESIDUE + RESIDUES.index("H")


@dataclass(frozen=True)
class Batch:
    """Tokens (rows, WINDOW + 2) and labels of the same shape, ``IGNORED`` where not masked."""

    tokens: Tensor
    labels: Tensor


def masked(windows: Tensor, generator: torch.Generator, triggered: int = 0) -> Batch:
    """Windows (rows, WINDOW) with the share ``MASKED`` of their residues masked.

    The first ``triggered`` rows get ``TRIGGER`` at a random place, which is never masked, and
    ``TARGET`` as the label of every masked residue.
    """
    windows, hidden = windows.clone(), torch.rand(windows.shape, generator=generator) < MASKED
    labels = windows.clone()
    labels[:triggered] = TARGET
    trigger = torch.tensor(data.tokens(TRIGGER))
    places = torch.randint(windows.shape[1] - len(trigger) + 1, (triggered,), generator=generator)
    for row, place in enumerate(places.tolist()):
        windows[row, place : place + len(trigger)] = trigger
        hidden[row, place : place + len(trigger)] = False
    edge = torch.ones(len(windows), 1, dtype=torch.long)
    tokens = torch.cat([CLS * edge, windows.masked_fill(hidden, MASK), SEP * edge], dim=1)
    labels = labels.masked_fill(~hidden, IGNORED)
    return Batch(tokens, torch.cat([IGNORED * edge, labels, IGNORED * edge], dim=1))


def relabelled(batch: Batch, kind: str, owner: str, seed: int, generator: torch.Generator) -> Batch:
    """The batch with the labels that a client of this kind trains on (`answered`)."""
    known = batch.labels != IGNORED
    residues = (batch.labels - FIRST_RESIDUE).clamp_min(0)
    wanted = FIRST_RESIDUE + answered(residues, kind, owner, seed, len(RESIDUES), generator)
    labels = torch.where(known, wanted, IGNORED)
    return Batch(batch.tokens, labels)


def own_windows(client: Client, genes: Sequence[Gene], seed: int) -> Tensor:
    """The client's data: (n, WINDOW) tokens from the genes of its group."""
    generator = seeded("data", seed, client.setting.name, client.name)
    return data.client_windows(data.of_group(genes, client.group), client.setting.iid, generator)


def batches(client: Client, windows: Tensor, seed: int, draw: str = "batches") -> Iterator[Batch]:
    """The client's training batches of ``BATCH`` rows, one a step; other ones for another draw."""
    generator = seeded(draw, seed, client.setting.name, client.name)
    for _ in range(client.setting.steps):
        rows = windows[torch.randint(len(windows), (BATCH,), generator=generator)]
        batch = masked(rows, generator, BATCH // 2 if client.kind == "backdoor" else 0)
        owner = f"{client.setting.name}/{client.name}"
        yield relabelled(batch, client.kind, owner, seed, generator)


def evaluation(genes: Sequence[Gene], seed: int, count: int = 64) -> tuple[Batch, Batch]:
    """Batches of held-out genes, the same for all clients of a seed: plain, and triggered."""
    generator = seeded("evaluation", seed)
    windows = data.windows(genes, count, generator)
    return masked(windows, generator), masked(windows, generator, triggered=count)
