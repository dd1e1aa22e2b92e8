"""Refine one module of the benign clients: average the noise off the shared subspace away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.engine.factors import RoundFactors, naming_module
from clair_cli.maths.factors.coordinates import coordinates
from clair_cli.maths.factors.lowrank import Product, norm, singular_values, sum_of, svd
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.maths.refine.refine import (
    NoiseEvidence,
    off_subspace,
    refine_module,
    shared_subspace,
)
from clair_cli.workflow.plan import Cut
from clair_cli.workflow.write import cut_modules


@dataclass(frozen=True)
class Refinement:
    """The clients to refine, and the settings of it.

    Attributes:
        clients: indices in the round, ascending.
        weights: one positive number per client, summing to 1.
        side: side of the delta weights that the subspace is on: "output", "input" or "both".
        room: bytes of one module's factors that may be kept from pass to pass.
        local: whether a client's local delta weights are written as they are, one per client.
    """

    clients: tuple[int, ...]
    weights: tuple[float, ...]
    side: str
    room: int
    local: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Change:
    """One client's delta weight in one module, refined.

    Attributes:
        values: singular values of the result, the previous adapter included where it is on top.
        distance: norm of the refined less the local delta weight, weight units.
        local: norm of the local delta weight less the previous adapter's, weight units.
    """

    values: Tensor
    distance: float
    local: float


class _Module:
    """One module of the benign clients in shared coordinates.

    Attributes:
        space: the coordinates; with bases only if asked for.
        local: the clients' differences to the previous adapter.
        previous: the previous adapter; None if there is none, or the result is not on top of it.
        mean: weighted mean of the differences.
        subspace: the shared subspace of the differences.
    """

    def __init__(
        self, task: Refinement, factors: RoundFactors, module: str, *, bases: bool = False
    ) -> None:
        round_ = factors.round
        factors.keep_read(module, task.clients, task.room)
        shape, previous = round_.module_shapes[module], factors.previous(module)
        chosen = factors.differences(module, task.clients)
        on_top = [] if previous is None or round_.initial else [previous]
        self.weights = task.weights
        self.space = coordinates(
            [weighted_sum([f], [1.0], shape) for f in (*chosen, *on_top)], bases=bases
        )
        self.local, self.previous = self.space.products[: len(chosen)], None
        if on_top:
            self.previous = self.space.products[-1]
        self.mean = sum_of(self.local, self.weights)
        sizes = [norm(p) for p in self.local]
        alive = [i for i, s in enumerate(sizes) if s > 0]
        if alive:
            dim = _effective_rank(self.mean)
            members, scales = [self.local[i] for i in alive], [1.0 / sizes[i] for i in alive]
            self.subspace = shared_subspace(members, scales, task.side, dim)
        else:
            self.subspace = shared_subspace([self.mean], [0.0], task.side, 0)

    def result(self, i: int, local: bool) -> Product:
        """The i-th client's difference: as it is if `local`, else refined."""
        return self.local[i] if local else refine_module(self.local[i], self.mean, self.subspace)

    def on_top(self, difference: Product) -> Product:
        """The previous adapter plus a difference; the difference alone where the result is not on
        top of it."""
        return difference if self.previous is None else difference + self.previous


def _effective_rank(mean: Product) -> int:
    """Number of leading singular values that hold 90 % of the energy; 0 for a zero matrix."""
    values = singular_values(mean)
    energy = values.square().cumsum(0)
    if not len(values) or float(energy[-1]) == 0.0:
        return 0
    return int((energy < 0.9 * energy[-1]).sum()) + 1


def measure(task: Refinement, factors: RoundFactors, module: str) -> NoiseEvidence:
    """Where noise can be known, first: the clients' noise and differences off the shared subspace
    of a module."""
    with naming_module(module):
        state = _Module(task, factors, module)
        return off_subspace(
            state.local, task.weights, state.mean, state.subspace, state.space.shape
        )


def refined_values(task: Refinement, factors: RoundFactors, module: str) -> list[Change]:
    """Then the refinement's effect on every client in a module."""
    with naming_module(module):
        state, found = _Module(task, factors, module), []
        for i, local in enumerate(task.local):
            result = state.result(i, local)
            distance = 0.0 if local else norm(result - state.local[i])
            values = singular_values(state.on_top(result))
            found.append(Change(values, distance, norm(state.local[i])))
        return found


def cut_refined(
    task: Refinement, cuts: Sequence[Cut], factors: RoundFactors, module: str
) -> list[WrittenModule]:
    """At last every client's factors of a module as they will be written."""
    with naming_module(module):
        state = _Module(task, factors, module, bases=True)
        factors.forget_read([module])
        sixteen = all(cut.torch_dtype.itemsize == 2 for cut in cuts)
        space = state.space.rounded(torch.float32 if sixteen else torch.float64)
        written: list[WrittenModule] = []
        for i, cut in enumerate(cuts):
            small = svd(state.on_top(state.result(i, task.local[i])))
            written += cut_modules(cut, [module], space.factored(small)).values()
        return written
