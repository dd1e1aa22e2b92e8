"""What clients with a weight add up to: on the device where that has the factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from clair_cli.engine.device import Engine
from clair_cli.engine.stacks import Stacks, adds_previous, naming_module, summed_of
from clair_cli.maths.evidence.wide import is_wide
from clair_cli.maths.factors.grams import Grams, grams, joined
from clair_cli.maths.factors.lowrank import Product, singular_values, spectrum
from clair_cli.maths.factors.stack import Factors, FactorStack, stack_factors
from clair_cli.maths.factors.thin import Thin, thin
from clair_cli.maths.merge.from_grams import MergedCore, merged_cores, merged_thin
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.maths.merge.wide import WideCore, wide_core, wide_thin
from clair_cli.workflow.judge import Judged
from clair_cli.workflow.passes import KEPT_BYTES

Core = MergedCore | WideCore
T = TypeVar("T")
R = TypeVar("R")

# Of each module, where all singular vectors would take too much memory: more than this are seldom
# written, and then they are made again.
_KEPT_VECTORS = 128

# Modules that a GPU works on together, and the share of its memory that cores may take.
_TOGETHER, _CORES_SHARE = 8, 1 / 16
# Modules that a CPU makes cores of together, and cuts, where those have few numbers in all: there
# what Python does between the products counts.
_CORES_TOGETHER, _CUT_TOGETHER, _SMALL = 4, 2, 4 * 256**2

# Growth of rounding errors up to which float32 products are far better than what they are rounded
# to: 2e-5 beside 4e-3, and an eighth of both.
MAX_GROWTH = {torch.bfloat16: 300.0, torch.float16: 37.5}


Seen = dict[str, tuple[Tensor, Core | None]]


class Merger:
    """The merged update of each module: by its Grams where they allow it, else by QR."""

    def __init__(self, judged: Judged, engine: Engine) -> None:
        self.judged, self.engine, self.round = judged, engine, judged.summed
        stacks = judged.stacks if self.round is judged.round else None
        self.stacks = stacks or Stacks(self.round, engine.device)
        on_cpu = engine.device.name == "cpu"
        room = KEPT_BYTES if on_cpu else max(KEPT_BYTES, int(_CORES_SHARE * engine.device.memory))
        self.room = room // max(1, len(judged.written))

    @cached_property
    def there(self) -> bool:
        """Whether all of the work is on a device that has the factors."""
        wide = any(map(self.wide, self.judged.written))
        return self.stacks.resident is not None and not wide

    def each(self, stage: str, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`Engine.each`, on the threads for such work."""
        each = self.engine.each_there if self.there else self.engine.each
        return each(stage, function, items)

    def batches(
        self, modules: Sequence[str], cores: Mapping[str, Core | None] | None = None
    ) -> list[list[str]]:
        """Modules to be worked on together: some of one shape and the same ranks.

        Args:
            cores: if they are known: only merged ones, each as small, go together.
        """
        alike: dict[object, list[str]] = {}
        for module in modules:
            key: object = self.round.module_shapes[module], self._ranks[module]
            core = None if cores is None else cores[module]
            if isinstance(core, MergedCore):
                key = key, core.left.shape
            elif cores is not None:
                key = module
            alike.setdefault(key, []).append(module)
        found = []
        for some in alike.values():
            size = self._together(some[0], _CORES_TOGETHER if cores is None else _CUT_TOGETHER)
            found += [some[start : start + size] for start in range(0, len(some), size)]
        return sorted(found)  # so that what is made early is early in a file

    def _together(self, module: str, on_cpu: int) -> int:
        """How many like this one go together."""
        if self.stacks.resident is not None:
            return _TOGETHER
        return max(1, min(on_cpu, _SMALL // max(1, self._terms(module) ** 2)))

    def observe(self, modules: Sequence[str], *, kept: bool = True) -> Seen:
        """The singular values of some modules of one shape and the same ranks, and their cores
        where those can be relied on.

        Args:
            kept: whether the cores are to be kept: then they may have fewer vectors.
        """
        with naming_module(modules[0]):
            if self.wide(modules[0]):
                return {module: self._wide_values(module, kept) for module in modules}
            cores = self._cores(modules, kept)
            return {
                module: (singular_values(self._product(module)), None)
                if core is None
                else (core.values, core)
                for module, core in zip(modules, cores, strict=True)
            }

    def _wide_values(self, module: str, kept: bool) -> tuple[Tensor, WideCore]:
        wide = wide_core(*self._weighted(module))
        width = len(wide.vectors)
        n = self._n_vectors(width, width) if kept else None
        return wide.values, wide if n is None else wide.leading(n)

    def alike(
        self, modules: Sequence[str], cores: Sequence[Core | None]
    ) -> list[tuple[Sequence[str], Sequence[Core | None]]]:
        """Modules that `leading` takes together: one by one if not all are merged from Grams, as
        may be where Grams that were made again are not those to the last bit."""
        if all(isinstance(core, MergedCore) for core in cores):
            return [(modules, cores)]
        return [([module], [core]) for module, core in zip(modules, cores, strict=True)]

    def leading(
        self,
        modules: Sequence[str],
        cores: Sequence[Core | None],
        rank: int,
        dtype: torch.dtype,
    ) -> Thin:
        """The leading `rank` singular vectors of some modules, `alike`, which their cores must
        have.

        Args:
            dtype: what they will be rounded to.
        """
        merged = [core for core in cores if isinstance(core, MergedCore)]
        if len(merged) < len(modules):
            ((module,), (core,)) = modules, cores  # these come alone
            if isinstance(core, WideCore):
                return wide_thin(*self._weighted(module), core.leading(rank))
            return thin(spectrum(self._product(module)))
        growth = max(core.growth_to(rank) for core in merged)
        single = growth <= MAX_GROWTH.get(dtype, 0.0)
        products = torch.float32 if single else self.engine.device.dtype
        return merged_thin(self.stacks.of(modules, self.judged.merged), merged, rank, products)

    def wide(self, module: str) -> bool:
        """Whether there are more rank-one terms than the layer is wide."""
        return is_wide(self._terms(module), self.round.module_shapes[module])

    @cached_property
    def _ranks(self) -> Mapping[str, tuple[int, ...]]:
        """Rank-one terms of each client with a weight, by module, and of the previous adapter if
        that is summed too."""
        round_, merged = self.round, self.judged.merged
        adapters = [round_.adapters[k] for k in merged]
        found = {}
        for m in self.judged.written:
            ranks = [a.modules[m].components if m in a.modules else 0 for a in adapters]
            if adds_previous(round_, m, merged):
                assert round_.previous is not None
                ranks.append(round_.previous.modules[m].components)
            found[m] = tuple(ranks)
        return found

    def _weights(self, module: str) -> list[float]:
        """Of what is summed in modules of the same ranks: the previous adapter stands in for
        clients that lack it."""
        round_, weights = self.round, [self.judged.weights[k] for k in self.judged.merged]
        if adds_previous(round_, module, self.judged.merged):
            lacking = [k for k in self.judged.merged if module not in round_.adapters[k].modules]
            weights.append(math.fsum(self.judged.weights[k] for k in lacking))
        return weights

    def _terms(self, module: str) -> int:
        return sum(self._ranks[module])

    def _n_vectors(self, n: int, size: int) -> int | None:
        """How many of `n` vectors of so many numbers may be kept; None for all of them."""
        fitting = (k for k in (n, _KEPT_VECTORS) if 8 * k * size <= self.room)
        most = next(fitting, 0)
        return None if most >= n else most

    def _cores(self, modules: Sequence[str], kept: bool) -> Sequence[MergedCore | None]:
        """With more terms than width one is a sum of others: never well-conditioned."""
        n_terms, width = self._terms(modules[0]), min(self.round.module_shapes[modules[0]])
        if n_terms > width:
            return [None] * len(modules)
        n = self._n_vectors(n_terms, 2 * n_terms) if kept else None
        return merged_cores(self._grams(modules), self._weights(modules[0]), n)

    def _grams(self, modules: Sequence[str]) -> Grams:
        """Those of the clients with a weight: what was kept of them, or made again."""
        kept = [self.judged.grams.pop(m) for m in modules if m in self.judged.grams]
        if len(kept) == len(modules):
            found = joined([pair.of_clients(self.judged.merged) for pair in kept])
            self.engine.device.wait()  # before they go: they were made on other lanes
            return found
        return grams(self.stacks.of(modules, self.judged.merged))

    def _summed(self, module: str) -> tuple[list[Factors], list[float]]:
        """What is summed, and its weights."""
        return summed_of(self.round, module, self.judged.merged), self._weights(module)

    def _weighted(self, module: str) -> tuple[FactorStack, list[float]]:
        """What is summed, on the CPU and in float64 whatever the device, and its weights."""
        clients, used = self._summed(module)
        return stack_factors([clients], self.round.module_shapes[module]), used

    def _product(self, module: str) -> Product:
        return weighted_sum(*self._summed(module), self.round.module_shapes[module])
