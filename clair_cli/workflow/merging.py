"""Second pass: merge the clients with a weight, module by module, and say what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.formats.draft import Draft
from clair_cli.maths.core_merge import MergedCore, merged_core
from clair_cli.maths.grams import grams
from clair_cli.maths.lowrank import Product, singular_values, spectrum
from clair_cli.maths.merge import plain_distance, weighted_sum
from clair_cli.maths.rounding import WrittenModule
from clair_cli.maths.stack import Factors, FactorStack, stack_factors
from clair_cli.maths.thin import Thin, thin
from clair_cli.maths.wide_evidence import is_wide
from clair_cli.maths.wide_merge import WideCore, wide_core, wide_thin
from clair_cli.workflow.engine import Engine
from clair_cli.workflow.judging import Judged
from clair_cli.workflow.passes import KEPT_BYTES
from clair_cli.workflow.settings import Settings
from clair_cli.workflow.tensors import (
    factors_of,
    less,
    naming_module,
    previous_of,
    stacked_on,
)
from clair_cli.workflow.writing import AdapterWriter, WrittenAdapter

Core = MergedCore | WideCore

# Of each module, where all singular vectors would take too much memory: more than this are seldom
# written, and then they are made again.
_KEPT_VECTORS = 128

# Growth of rounding errors up to which float32 products are far better than 16 bits: 2e-5.
MAX_GROWTH = 300.0


@dataclass(frozen=True)
class Merged:
    """The merged adapter and its distance to the plain mean of all comparable clients."""

    adapter: WrittenAdapter
    plain_mean_distance: float | None


def merge_round(
    judged: Judged,
    settings: Settings,
    engine: Engine,
    *,
    one_file: bool,
    draft: Draft | None = None,
    keep_tensors: bool = True,
) -> Merged:
    """Merge the clients with a weight. Sums run in order of content.

    Args:
        one_file: whether the adapter is to be a single file.
        draft: gets the adapter's bytes as they are made.
        keep_tensors: whether the adapter is to be had in memory too.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
    """
    modules = judged.written
    adapters = [judged.round.adapters[k] for k in judged.merged]
    assert judged.round.output is not None
    writer = AdapterWriter(adapters, judged.round.output, settings, one_file=one_file, draft=draft)
    merger = _Merger(judged, engine, KEPT_BYTES // max(1, len(modules)))
    cores: dict[str, Core | None] = {}
    for module, (values, core) in zip(
        modules, engine.each("merging", merger.observe, modules), strict=True
    ):
        writer.observe(module, values)
        cores[module] = core
    writer.plan()

    def cut(module: str) -> WrittenModule:
        with naming_module(module):
            core = cores.pop(module)
            if core is not None and core.n_vectors < min(writer.rank, len(core.values)):
                core = merger.observe(module, kept=False)[1]
            exact = merger.leading(module, core, writer.rank, sixteen_bits=writer.sixteen_bits)
            return writer.cut(module, exact)

    for module, written in zip(modules, engine.each("writing", cut, modules), strict=True):
        writer.put(module, written)
    return Merged(writer.finish(), _plain_distance(judged))


class _Merger:
    """The merged update of each module: by its Grams where they allow it, else by QR.

    Args:
        room: bytes that may be kept of a module until the rank is known.
    """

    def __init__(self, judged: Judged, engine: Engine, room: int) -> None:
        self.judged, self.engine, self.room = judged, engine, room

    def observe(self, module: str, *, kept: bool = True) -> tuple[Tensor, Core | None]:
        """A module's singular values, and its core where one can be relied on.

        Args:
            kept: whether the core is to be kept: then it may have fewer vectors.
        """
        with naming_module(module):
            if self._wide(module):
                wide = wide_core(*self._weighted(module))
                width = len(wide.vectors)
                n = self._n_vectors(width, width) if kept else None
                return wide.values, wide if n is None else wide.leading(n)
            core = self._core(module, kept)
            if core is not None:
                return core.values, core
            return singular_values(self._product(module)), None

    def leading(self, module: str, core: Core | None, rank: int, *, sixteen_bits: bool) -> Thin:
        """The leading `rank` singular vectors of one module, which `core` must have.

        Args:
            sixteen_bits: whether they will be rounded to as many.
        """
        if core is None:
            return thin(spectrum(self._product(module)))
        if isinstance(core, WideCore):
            return wide_thin(*self._weighted(module), core.leading(rank))
        single = sixteen_bits and core.growth <= MAX_GROWTH
        dtype = torch.float32 if single else self.engine.device.dtype
        stack = self._stack(module)
        return Thin(stack.lora_B[0], stack.lora_A[0], core.values, core.left, core.right, dtype)

    def _wide(self, module: str) -> bool:
        """Whether there are more rank-one terms than the layer is wide."""
        return is_wide(self._terms(module), self.judged.round.module_shapes[module])

    def _width(self, module: str) -> int:
        return min(self.judged.round.module_shapes[module])

    def _terms(self, module: str) -> int:
        """Rank-one terms of the clients with a weight."""
        adapters = [self.judged.round.adapters[k] for k in self.judged.merged]
        return sum(a.modules[module].rank for a in adapters if module in a.modules)

    def _n_vectors(self, n: int, size: int) -> int | None:
        """How many of `n` vectors of so many numbers may be kept; None for all of them."""
        fitting = (k for k in (n, _KEPT_VECTORS) if 8 * k * size <= self.room)
        most = next(fitting, 0)
        return None if most >= n else most

    def _core(self, module: str, kept: bool) -> MergedCore | None:
        """With a previous adapter every client's stack holds it too, and with more terms than
        width one is a sum of others: never well-conditioned."""
        if self.judged.round.previous is not None or self._terms(module) > self._width(module):
            return None
        pair = self.judged.grams.pop(module, None)
        if pair is not None:
            pair = pair.of_clients(self.judged.merged)
        else:
            pair = grams(self._stack(module))
        pair = pair.cpu()
        used = [self.judged.weights[k] for k in self.judged.merged]
        weights = torch.tensor(used, dtype=torch.float64)
        terms = torch.repeat_interleave(weights * pair.scale[0], torch.tensor(pair.ranks))
        n = self._n_vectors(len(terms), 2 * len(terms)) if kept else None
        core = merged_core(pair.B[0], pair.A[0], terms, n)
        return None if core is None else core.of_unbalanced(pair.by_B[0], pair.by_A[0])

    def _stack(self, module: str) -> FactorStack:
        """What is summed, on the device."""
        clients, _ = self._updates(module)
        return stacked_on(self.engine.device, [clients], self.judged.round.module_shapes[module])

    def _updates(self, module: str) -> tuple[list[Factors], list[float]]:
        """What is summed, and its weights; the previous adapter, if given, is one more with
        weight 1: the mean update goes on top of it."""
        round_, merged = self.judged.round, self.judged.merged
        previous = previous_of(round_, module)
        clients = [less(factors_of(round_.adapters[k], module), previous) for k in merged]
        used = [self.judged.weights[k] for k in merged]
        if previous is not None:
            clients, used = [*clients, previous], [*used, 1.0]
        return clients, used

    def _weighted(self, module: str) -> tuple[FactorStack, list[float]]:
        """What is summed, on the CPU and in float64 whatever the device, and its weights."""
        clients, used = self._updates(module)
        return stack_factors([clients], self.judged.round.module_shapes[module]), used

    def _product(self, module: str) -> Product:
        return weighted_sum(*self._updates(module), self.judged.round.module_shapes[module])


def _plain_distance(judged: Judged) -> float | None:
    """Distance of the merged update to the plain mean of all comparable clients, over the norm
    of the latter; from the pairs' inner products in every module."""
    evidence = judged.evidence
    assert evidence is not None
    distance = size = 0.0
    for cosines, norms in zip(evidence.matrix.value, evidence.norms, strict=True):
        inner = torch.nan_to_num(cosines, nan=0.0) * norms[:, None] * norms[None, :]
        moved, norm = plain_distance(inner, judged.weights, judged.plain_weights)
        distance, size = math.hypot(distance, moved), math.hypot(size, norm)
    return distance / size if size > 0 else None
