"""Pools as tables: the evidence of all their clients, computed once.

A cohort is then a choice of rows and columns of these tables, so that it costs milliseconds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pools import store
from benchmarks.pools.settings import Client, clients_of
from benchmarks.pools.settings import Setting as Recipe
from benchmarks.pretrained.clients import SETTINGS
from benchmarks.width import cohorts, simulate
from clair_cli.engine.factors import difference
from clair_cli.maths.evidence.gather import Evidence, collected, gather
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, stack_factors
from clair_cli.maths.judge.judge import Judgement, judge


@dataclass(frozen=True)
class Pool:
    """All clients of one setting.

    Attributes:
        name: of the pool.
        names, kinds: of the clients; kind "honest" or a bad one.
        evidence: of all clients, in this order.
    """

    name: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    evidence: Evidence

    def of(self, kind: str) -> list[int]:
        """The clients of one kind."""
        return [k for k, one in enumerate(self.kinds) if one == kind]

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the clients' delta weights over all modules, (n_clients, n_clients)."""
        return torch.stack(list(self.evidence.inner_products())).sum(0)

    def judge(self, clients: Sequence[int]) -> Judgement:
        """The judgement of a cohort."""
        evidence = cut(self.evidence, clients)
        modules = [str(m) for m in range(len(evidence.norms))]
        return judge(evidence, [self.names[k] for k in clients], modules)


def cut(evidence: Evidence, clients: Sequence[int]) -> Evidence:
    """The evidence of some clients, without the modules that none of them has."""
    chosen = torch.tensor(list(clients))
    used = (evidence.norms[:, chosen] > 0).any(1)

    def pairs(table: PairTable) -> PairTable:
        return PairTable(*(t[used][:, chosen][:, :, chosen] for t in (table.value, table.null)))

    return Evidence(
        evidence.norms[used][:, chosen], pairs(evidence.matrix), pairs(evidence.output),
        pairs(evidence.input), evidence.effective_ranks[used][:, chosen],
        evidence.beside and evidence.beside.of(chosen),
    )  # fmt: skip


def evidence_of(clients: Sequence[Mapping[str, Factors]]) -> Evidence:
    """The evidence of some clients.

    Args:
        clients: module to factors, of each client.
    """
    parts, modules = [], sorted({name for one in clients for name in one})
    for name in modules:
        each = [one.get(name) for one in clients]
        shape = next((one[1].shape[0], one[0].shape[1]) for one in each if one is not None)
        parts.append(gather(grams(stack_factors([each], shape))))
    return collected((([m], part) for m, part in enumerate(parts)), len(parts))


def width_pool(setting: simulate.Setting, cache: Path = simulate.CACHE) -> Pool | None:
    """A simulated pool, or None if a module of it is missing."""
    loaded = cohorts.load_pool(setting, cache)
    if loaded is None:
        return None
    kinds = setting.kinds
    clients: list[dict[str, Factors]] = [
        {f"{m:03d}": (A[k], B[k], cohorts.SCALE) for m, (A, B) in enumerate(loaded.layers)}
        for k in range(len(kinds))
    ]
    names = tuple(f"{kind}-{k:02d}" for k, kind in enumerate(kinds))
    return Pool(setting.name, names, tuple(kinds), evidence_of(clients))


def width_pools(options: argparse.Namespace) -> Iterator[tuple[simulate.Setting, Pool]]:
    """The simulated pools that are there, of those that the options ask for."""
    for setting in simulate.settings(options):
        pool = width_pool(setting, options.cache)
        if pool is not None:
            yield setting, pool


def pretrained_pool(recipes: Sequence[Recipe], seed: int) -> Pool | None:
    """The clients of some pools of the pretrained model that are on disk, less the previous adapter
    in a second round; None if there are none. A client's name is that of its pool and its own."""
    found: list[Client] = []
    clients: list[dict[str, Factors]] = []
    for recipe in recipes:
        folder = store.pool_path("pretrained", seed, recipe.name)
        here = [one for one in clients_of(recipe) if store.is_trained(folder, one)]
        before: Mapping[str, Factors] = {}
        if recipe.second and here:
            before = factors_of(store.load_adapter(folder / "previous"))
        for one in here:
            own = factors_of(store.load_adapter(folder / one.name))
            clients.append({name: difference(f, before.get(name)) for name, f in own.items()})
        found += here
    if not found:
        return None
    name = "+".join(recipe.name for recipe in recipes)
    names = tuple(f"{one.setting.name}/{one.name}" for one in found)
    return Pool(name, names, tuple(one.kind for one in found), evidence_of(clients))


def pretrained_pools(seed: int) -> dict[str, Pool]:
    """Setting to pool, of the pretrained model's pools of a seed that are there; {} where the
    environment names no cache."""
    if "CLAIR_BENCH_CACHE" not in os.environ:
        return {}
    found = {name: pretrained_pool([recipe], seed) for name, recipe in SETTINGS.items()}
    return {name: pool for name, pool in found.items() if pool is not None}


def factors_of(adapter: store.Adapter) -> dict[str, Factors]:
    """Module to factors of a saved adapter."""
    state, config = adapter
    scale = config["lora_alpha"] / config["r"]
    return {
        name.removesuffix(".lora_A.weight"): (
            value, state[name.replace(".lora_A.", ".lora_B.")], scale
        )
        for name, value in state.items()
        if name.endswith(".lora_A.weight")
    }  # fmt: skip
