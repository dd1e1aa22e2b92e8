"""One refined adapter per benign client: noise off the shared subspace averaged away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.maths.refine.gain import (
    Gain,
    NoiseModel,
    estimate_gain,
    noise_from_counts,
    noise_from_option,
)
from clair_cli.maths.refine.refine import NoiseEvidence
from clair_cli.output.adapter_files import AdapterFiles
from clair_cli.remark import Remark
from clair_cli.settings import Settings
from clair_cli.workflow.bounds import check_sum, largest_refined
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.heads import MergedHead
from clair_cli.workflow.judge import JudgedRound
from clair_cli.workflow.merge_heads import merged_heads, plan_heads
from clair_cli.workflow.plan import plan_adapter
from clair_cli.workflow.refine_module import (
    Change,
    Refinement,
    cut_refined,
    measure,
    refined_values,
)
from clair_cli.workflow.write import AdapterWriter, WrittenAdapter


@dataclass(frozen=True)
class RefinedAdapter:
    """One client's result.

    Attributes:
        adapter: as written: refined, or the local one where refinement is not sure to help.
        changed: norm of (refined - local) delta weights over that of the local ones.
        gain: estimated errors, or None when they can't be known.
        kept_local: whether the local adapter is written.
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
        heads: the dense tensors, the same in every client's adapter. warnings: remarks on them.
    """

    clients: tuple[RefinedAdapter, ...]
    side: str
    why: str
    model: NoiseModel
    heads: tuple[MergedHead, ...] = ()
    warnings: tuple[Remark, ...] = ()

    @property
    def files(self) -> dict[str, AdapterFiles]:
        """Each client's, by its name."""
        return {r.name: r.adapter.files for r in self.clients}

    @property
    def base_models(self) -> dict[str, object]:
        """As each client's config names it, or None."""
        return {r.name: r.adapter.base_model for r in self.clients}


def choose_side(judged: JudgedRound) -> tuple[str, str]:
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


def refine_round(
    judged: JudgedRound,
    factors: RoundFactors,
    settings: Settings,
    engine: Engine,
    destination: Destination,
) -> Refined:
    """Refine every client with a weight, module by module in two or three looks.

    The first, where noise can be known, estimates it and the gain, which decides who is refined;
    the second gives every client's singular values, from which its rank follows; the last its
    factors. Each needs what the one before found in all modules. Only a few modules of all clients
    are in memory at once, and those adapters that `destination` does not write to files.

    Args:
        factors: of the judged round.

    Raises:
        ClientLost, OutputError, ArithmeticError: as `merge_round`.
    """
    destination.close()
    modules, factors = judged.written, factors.of(judged.summed)
    side, why = choose_side(judged)
    weights = tuple(judged.weights[k] for k in judged.merged)
    factors.forget()  # what is kept is for a merge
    task = Refinement(judged.merged, weights, side, engine.stores // max(1, len(modules)))
    look = partial(engine.map, items=modules, factors=factors, on_device=False, keeping=True)
    offs: list[NoiseEvidence] = []
    if settings.noise is not None or judged.round.weights is not None:
        offs = list(look("measuring", partial(measure, task)))
    gains, model = _gains(judged, settings, offs)
    task = replace(task, local=tuple(gain is not None and not gain.sure for gain in gains))

    looked = look("refining", partial(refined_values, task))
    changes = dict(zip(modules, looked, strict=True))
    most = largest_refined(judged)
    for module in modules:
        for change, largest in zip(changes[module], most[module], strict=True):
            check_sum(module, change.values, largest)

    heads, remarks = plan_heads(judged, settings)
    writers = _writers(judged, changes, settings, destination, heads)
    cuts = [writer.plan.cut for writer in writers]
    every = look("writing", partial(cut_refined, task, cuts))
    for module, written in zip(modules, every, strict=True):
        for writer, pair in zip(writers, written, strict=True):
            writer.put(module, pair)
    for head in heads:
        each = [w.plan.scale.scaling if head.tensor.module else 1.0 for w in writers]
        scalings = sorted(set(each))
        tensors = merged_heads(judged, [(head, s) for s in scalings], factors, engine)
        made = dict(zip(scalings, tensors, strict=True))
        for writer, scaling in zip(writers, each, strict=True):
            writer.put_head(head, made[scaling])
    results = []
    for i, k in enumerate(judged.merged):
        moved = size = 0.0
        for module in modules:
            change = changes[module][i]
            moved, size = math.hypot(moved, change.distance), math.hypot(size, change.local)
        results.append(
            RefinedAdapter(
                judged.round.adapters[k].name, writers[i].finish(),
                moved / size if size > 0 else None, gains[i], task.local[i],
            )
        )  # fmt: skip
    return Refined(tuple(sorted(results, key=lambda r: r.name)), side, why, model, heads, remarks)


def _writers(
    judged: JudgedRound,
    changes: Mapping[str, Sequence[Change]],
    settings: Settings,
    destination: Destination,
    heads: Sequence[MergedHead],
) -> list[AdapterWriter]:
    """One for every client with a weight."""
    output = judged.round.output
    assert output is not None
    writers = []
    for i, k in enumerate(judged.merged):
        own = [judged.round.adapters[k]]
        plan = plan_adapter({m: looked[i].values for m, looked in changes.items()}, own, settings)
        writers.append(AdapterWriter(plan, own, output, settings, destination, heads))
    return writers


def _gains(
    judged: JudgedRound, settings: Settings, offs: Sequence[NoiseEvidence]
) -> tuple[list[Gain | None], NoiseModel]:
    """Every client's estimated errors, None where they can't be known, and the noise assumed.

    Args:
        offs: one per module; none where noise can't be known.
    """
    energies = [sum(column) for column in zip(*(o.energy for o in offs), strict=True)]
    weights = [judged.weights[k] for k in judged.merged]
    n_inside, n_off = sum(o.n_inside for o in offs), sum(o.n_entries for o in offs)
    n_fitted = sum(o.n_fitted for o in offs)
    unknown = tuple(float("nan") for _ in weights)
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
