"""One refined adapter per benign client: noise off the shared subspace averaged away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.engine.device import Engine
from clair_cli.engine.stacks import naming_module, previous_of, updates_of
from clair_cli.maths.factors.coordinates import coordinates
from clair_cli.maths.factors.lowrank import Product, norm, singular_values, spectrum, sum_of
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.maths.refine.gain import (
    Gain,
    NoiseModel,
    estimate_gain,
    noise_from_counts,
    noise_from_option,
)
from clair_cli.maths.refine.refine import OffSubspace, off_subspace, refine_module, shared_subspace
from clair_cli.output.adapter_files import AdapterFiles
from clair_cli.settings import Settings
from clair_cli.workflow.bounds import check_sum, largest_refined
from clair_cli.workflow.judge import Judged
from clair_cli.workflow.outputs import Destination
from clair_cli.workflow.write import AdapterWriter, WrittenAdapter


@dataclass(frozen=True)
class RefinedAdapter:
    """One client's result.

    Attributes:
        adapter: as written: refined, or the local one where refinement is not sure to help.
        changed: distance of what is written to the local update over the latter's norm.
        gain: estimated errors, or None when they can't be known.
    """

    name: str
    adapter: WrittenAdapter
    changed: float | None
    gain: Gain | None
    kept_local: bool


@dataclass(frozen=True)
class Refined:
    """All refined adapters and what was assumed.

    Attributes:
        side, why: on which side the subspace was taken.
        model: noise and heterogeneity.
    """

    clients: tuple[RefinedAdapter, ...]
    side: str
    why: str
    model: NoiseModel

    @property
    def files(self) -> dict[str, AdapterFiles]:
        """Each client's, by its name."""
        return {r.name: r.adapter.files for r in self.clients}


def choose_side(judged: Judged) -> tuple[str, str]:
    """The side with the stronger sharing above its null; `both` where only vec(D) shows any."""
    judgement = judged.judgement
    assert judgement is not None
    stacking = judgement.structure.stacking
    if stacking in ("output", "input"):
        return stacking, f"sharing is strongest in the {stacking} subspace"
    if stacking is None:
        return "both", "no sharing was found, so the leading directions of the mean are used"
    return "both", (
        "sharing shows in the direction of the whole update (matrix stacking); both sides are "
        "projected, with dimensions from the spectrum of the members' mean"
    )


class _Module:
    """One module of the benign clients: their updates, mean and subspace, in coordinates of all of
    them."""

    def __init__(self, judged: Judged, module: str, side: str, *, bases: bool = False) -> None:
        shape = judged.round.module_shapes[module]
        previous = previous_of(judged.round, module)
        updates = updates_of(judged.summed, module, previous)
        chosen = [updates[k] for k in judged.merged]
        on_top = [] if previous is None else [previous]
        self.weights = [judged.weights[k] for k in judged.merged]
        self.space = coordinates(
            [weighted_sum([f], [1.0], shape) for f in (*chosen, *on_top)], bases=bases
        )
        self.local, self.previous = self.space.products[: len(chosen)], None
        if on_top:
            self.previous = self.space.products[-1]
        self.mean = sum_of(self.local, self.weights)
        sizes = [norm(p) for p in self.local]
        alive = [i for i, s in enumerate(sizes) if s > 0]
        dim = _dim(judged, module, self.mean)
        if alive:
            members, scales = [self.local[i] for i in alive], [1.0 / sizes[i] for i in alive]
            self.subspace = shared_subspace(members, scales, side, dim)
        else:
            self.subspace = shared_subspace([self.mean], [0.0], side, 0)

    def off(self) -> OffSubspace:
        return off_subspace(self.local, self.weights, self.mean, self.subspace, self.space.shape)

    def result(self, i: int, keep: bool) -> Product:
        """The i-th client's refined update, or its local one."""
        return self.local[i] if keep else refine_module(self.local[i], self.mean, self.subspace)

    def on_top(self, update: Product) -> Product:
        return update if self.previous is None else update + self.previous


def _dim(judged: Judged, module: str, mean: Product) -> int:
    """Shared dimensions of a module: the decomposition's, or the mean's effective rank."""
    judgement = judged.judgement
    index = list(judged.round.module_shapes).index(module)
    if judgement is not None and judgement.structure.stacking in ("output", "input"):
        assert judgement.collaborative is not None
        return judgement.collaborative.penalties.subspace_dims[index]
    values = singular_values(mean)
    energy = values.square().cumsum(0)
    if not len(values) or float(energy[-1]) == 0.0:
        return 0
    return int((energy < 0.9 * energy[-1]).sum()) + 1


def refine_round(
    judged: Judged, settings: Settings, engine: Engine, destination: Destination
) -> Refined:
    """Refine every client with a weight, module by module in three looks.

    The first estimates noise and gain, the second gives every client's singular values, the
    third its factors; what is held is a few modules of all clients, and what `destination` does
    not write to files at once.
    """
    side, why = choose_side(judged)
    looks = _Looks(judged, side)
    modules = judged.written
    offs = list(engine.each("measuring", looks.off, modules))
    gains, model = _gains(judged, settings, offs)
    looks.keep = [gain is not None and not gain.sure for gain in gains]
    output = judged.round.output
    assert output is not None
    destination.close()
    looks.writers = writers = [
        AdapterWriter([judged.round.adapters[k]], output, settings, destination)
        for k in judged.merged
    ]
    most = largest_refined(judged)
    moved, size = [0.0] * len(writers), [0.0] * len(writers)
    for module, seen in zip(modules, engine.each("refining", looks.values, modules), strict=True):
        for i, (values, distance, norm_) in enumerate(seen):
            check_sum(module, values, most[module][i])
            writers[i].observe(module, values)
            moved[i], size[i] = math.hypot(moved[i], distance), math.hypot(size[i], norm_)
    for writer in writers:
        writer.plan()
    for module, written in zip(modules, engine.each("writing", looks.cut, modules), strict=True):
        for writer, factors in zip(writers, written, strict=True):
            writer.put(module, factors)
    results = [
        RefinedAdapter(
            judged.round.adapters[k].name, writers[i].finish(),
            moved[i] / size[i] if size[i] > 0 else None, gains[i], looks.keep[i],
        )
        for i, k in enumerate(judged.merged)
    ]  # fmt: skip
    return Refined(tuple(sorted(results, key=lambda r: r.name)), side, why, model)


class _Looks:
    """What is done with one module at a time, on any thread."""

    def __init__(self, judged: Judged, side: str) -> None:
        self.judged, self.side = judged, side
        self.keep: list[bool] = []  # by client: write the local update
        self.writers: list[AdapterWriter] = []

    def off(self, module: str) -> OffSubspace:
        """What the module says about noise and differences."""
        with naming_module(module):
            return _Module(self.judged, module, self.side).off()

    def values(self, module: str) -> list[tuple[Tensor, float, float]]:
        """Of every client: singular values, distance to the local update, norm of that one."""
        with naming_module(module):
            state = _Module(self.judged, module, self.side)
            seen = []
            for i, keep in enumerate(self.keep):
                update = state.result(i, keep)
                distance = 0.0 if keep else norm(update - state.local[i])
                values = singular_values(state.on_top(update))
                seen.append((values, distance, norm(state.local[i])))
            return seen

    def cut(self, module: str) -> list[WrittenModule]:
        """Every client's factors as they will be written."""
        with naming_module(module):
            state = _Module(self.judged, module, self.side, bases=True)
            sixteen = all(writer.dtype.itemsize == 2 for writer in self.writers)
            space = state.space.rounded(torch.float32 if sixteen else torch.float64)
            written: list[WrittenModule] = []
            for i, writer in enumerate(self.writers):
                small = spectrum(state.on_top(state.result(i, self.keep[i])))
                written += writer.cut([module], space.thin(small)).values()
            return written


def _gains(
    judged: Judged, settings: Settings, offs: Sequence[OffSubspace]
) -> tuple[list[Gain | None], NoiseModel]:
    """Every client's estimated errors, None where they can't be known, and the noise assumed.

    Args:
        offs: one per module.
    """
    energies = [sum(column) for column in zip(*(o.energy for o in offs), strict=True)]
    weights = [judged.weights[k] for k in judged.merged]
    n_inside, n_off = sum(o.n_inside for o in offs), sum(o.n_entries for o in offs)
    n_fitted = sum(o.n_fitted for o in offs)
    unknown = tuple(float("nan") for _ in energies)
    model = NoiseModel(unknown, float("nan"), "not identifiable")
    if settings.noise is not None:
        model = noise_from_option(settings.noise, energies, n_off)
    elif judged.round.weights is not None:
        counts = [judged.round.weights[k] for k in judged.merged]
        model = noise_from_counts(energies, counts, weights, n_off)
    if not model.known:
        return [None for _ in weights], model
    return [
        estimate_gain(model, i, energies, weights, n_inside, n_off, n_fitted)
        for i in range(len(weights))
    ], model
