"""Cohorts drawn from a simulated pool, judged by `clair`, beside three rules of the field.

`clair_cli.merge` runs in memory with `--fresh` and the defaults of the command line, except rank
full and dtype float32, so that errors are those of the set of clients and not of truncation. Errors
are ||merged - mean of the honest|| / ||that mean||, all from inner products of factors. The other
rules need nothing but the clients' Gram matrix: they get K points in K dimensions that have it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import clair_cli
from benchmarks import peers
from benchmarks.width.pairs import Pairs, pairs
from benchmarks.width.simulate import ALPHA, KINDS, RANK, Setting

CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["proj"]}
SCALE = ALPHA / RANK
SHARES = (0.25, 0.4)
RULES = {
    "mean": peers.PEERS["mean"],
    "geomed": peers.PEERS["geometric-median"],
    "m-krum": peers.PEERS["multi-krum"],
}
SILENT = 0.2
LEFT_OUT = ("contaminated", "duplicate", "rejected")

Case = tuple[str, dict[str, int]]


@dataclass(frozen=True)
class Pool:
    """All clients of one setting.

    Attributes:
        layers: (lora_A, lora_B) of each module, all clients stacked.
    """

    setting: Setting
    layers: Sequence[tuple[Tensor, Tensor]]

    @cached_property
    def tables(self) -> list[Pairs]:
        """Pairs of clients in each module."""
        return [pairs(A, B) for A, B in self.layers]

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the clients' delta weights over all modules, (clients, clients)."""
        total: Tensor = SCALE**2 * torch.stack([table.inner for table in self.tables]).sum(0)
        return total

    def client(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State dict and configuration of one client."""
        state = {}
        for number, (A, B) in enumerate(self.layers):
            state[f"layers.{number}.proj.lora_A.weight"] = A[index]
            state[f"layers.{number}.proj.lora_B.weight"] = B[index]
        return state, CONFIG


def load_pool(setting: Setting, cache: Path) -> Pool | None:
    """The pool, or None if a module of it is missing."""
    paths = [cache / setting.name / f"module-{i:03d}.safetensors" for i in range(setting.modules)]
    if not all(path.exists() for path in paths):
        return None
    layers = [(one["lora_A"], one["lora_B"]) for one in map(load_file, paths)]
    return Pool(setting, layers)


def cases(setting: Setting, sizes: Sequence[int]) -> Iterator[Case]:
    """What cohorts to draw: (case, clients of each kind), those that the pool has enough for.

    Cases: `clean`; each bad kind and all of them (`mixed`) at the shares `SHARES`; cohorts of bad
    clients alone that share nothing (`all lone`, `all noise`). Where the pool is smaller than the
    size, `clean` and `all` cohorts are as large as it.
    """
    seen: list[Case] = []
    for size in sizes:
        seen.append(("clean", {"honest": min(size, setting.honest)}))
        for share in SHARES:
            bad = math.floor(size * share + 0.5)
            for kind in KINDS[1:]:
                seen.append((kind, {"honest": size - bad, kind: bad}))
            third = [(bad + extra) // 3 for extra in range(3)]
            seen.append(
                ("mixed", {"honest": size - bad, **dict(zip(KINDS[1:], third, strict=True))})
            )
        for kind in ("lone", "noise"):
            seen.append((f"all {kind}", {kind: min(size, setting.bad)}))
    for index, (case, counts) in enumerate(seen):
        enough = all(setting.kinds.count(kind) >= count for kind, count in counts.items())
        if enough and (case, counts) not in seen[:index]:
            yield case, counts


def draw(setting: Setting, counts: Mapping[str, int], number: int = 0) -> list[int]:
    """Random clients of the pool, so many of each kind, in order."""
    chance = random.Random(f"{setting.name} {sorted(counts.items())} {number}")
    of_kind = {kind: [i for i, k in enumerate(setting.kinds) if k == kind] for kind in counts}
    return sorted(i for kind, n in counts.items() for i in chance.sample(of_kind[kind], n))


@dataclass(frozen=True)
class Found:
    """What came out for one cohort.

    Attributes:
        judged: whether there is a verdict and an adapter, with exit code 0.
        honest, bad: verdicts of the clients.
        error: of the merge; None where nobody is honest or nothing was merged.
        peers: errors of the other rules; empty where nobody is honest.
    """

    judged: bool
    honest: Sequence[str]
    bad: Sequence[str]
    error: float | None
    peers: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Judged, every bad client found and every honest one benign; without honest clients:
        undetermined."""
        if not self.honest:
            return not self.judged
        found = all(verdict in (*LEFT_OUT, "minority") for verdict in self.bad)
        return self.judged and found and set(self.honest) == {"benign"}

    @property
    def silent(self) -> bool:
        """Judged, exit code 0, and far off the honest clients' mean, if there are any."""
        return self.judged and self.error is not None and self.error > SILENT


def judge(pool: Pool, indices: Sequence[int]) -> Found:
    """Judge and merge one cohort."""
    kinds = pool.setting.kinds
    names = {f"client-{i:02d}": i for i in indices}
    clients = {name: pool.client(i) for name, i in names.items()}
    result = clair_cli.merge(clients, rank="full", dtype="float32", fresh=True)
    verdicts = {names[client.name]: client.verdict for client in result.report.clients}
    honest = [i for i in indices if kinds[i] == "honest"]
    bad = [i for i in indices if kinds[i] != "honest"]
    error = None
    if honest and result.tensors is not None:
        error = merge_error(pool, honest, result.tensors)
    judged = result.report.cohort.outcome == "judged" and result.report.exit_code == 0
    return Found(
        judged, [verdicts[i] for i in honest], [verdicts[i] for i in bad], error,
        peer_errors(pool.gram, honest, bad),
    )  # fmt: skip


def merge_error(pool: Pool, honest: Sequence[int], merged: Mapping[str, Tensor]) -> float:
    """Relative distance of a merged adapter (of scale 1) from the mean of the honest clients."""
    own, with_target = 0.0, 0.0
    for number, (A, B) in enumerate(pool.layers):
        a, b = (merged[f"layers.{number}.proj.lora_{side}.weight"].double() for side in ("A", "B"))
        own += float(((a @ a.T) * (b.T @ b)).sum())
        wide_a, wide_b = A[honest].double().flatten(0, 1), B[honest].double().permute(1, 0, 2)
        product = (a @ wide_a.T) * (b.T @ wide_b.flatten(1))
        with_target += SCALE * float(product.sum()) / len(honest)
    target = float(pool.gram[honest][:, honest].mean())
    return math.sqrt(max(0.0, own - 2 * with_target + target) / target)


def peer_errors(gram: Tensor, honest: Sequence[int], bad: Sequence[int]) -> dict[str, float]:
    """Errors of `RULES`, told the number of bad clients, from inner products of all clients."""
    if not honest:
        return {}
    chosen = [*honest, *bad]
    values, vectors = torch.linalg.eigh(gram[chosen][:, chosen])
    points = vectors * values.clamp_min(0.0).sqrt()
    target = points[: len(honest)].mean(0)
    return {name: peers.error(rule(points, len(bad)), target) for name, rule in RULES.items()}
