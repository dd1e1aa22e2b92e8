"""Second pass over the modules: the weighted sum of the clients' delta weights, as an adapter.

Every module is looked at twice. The first look gives its singular values, from which rank, scale
and dtype of the whole adapter follow; the second cuts it to that rank and rounds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from clair_cli.engine.device import Device
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.maths.factors.stack import is_overcomplete
from clair_cli.settings import Settings
from clair_cli.workflow.batches import KEPT_BETWEEN_PASSES
from clair_cli.workflow.bounds import check_sum, largest_sums
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.judge import JudgedRound
from clair_cli.workflow.merge_heads import merged_heads, plan_heads
from clair_cli.workflow.merge_modules import (
    Spectrum,
    cut,
    decompose,
    second_looks,
    together,
)
from clair_cli.workflow.plan import plan_adapter, possible_cuts
from clair_cli.workflow.weighted_mean import WeightedMean
from clair_cli.workflow.write import AdapterWriter, WrittenAdapter

# Modules that a GPU works on together, and the share of its memory for vectors that are kept.
_GPU_BATCH, _VECTORS_SHARE = 8, 1 / 16
# Modules that a CPU decomposes together where their components are few.
_DECOMPOSED_TOGETHER = 4


def merge_round(
    judged: JudgedRound,
    factors: RoundFactors,
    settings: Settings,
    engine: Engine,
    destination: Destination,
) -> WrittenAdapter:
    """Merge the clients with a weight. Sums run in order of content.

    Args:
        factors: of the judged round.
        destination: gets the adapter's bytes as they are made, after those of an earlier try are
            removed.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
        ArithmeticError: see `check_sum`.
    """
    destination.close()
    modules, factors = judged.written, factors.of(judged.summed)
    weights = tuple(judged.weights[k] for k in judged.merged)
    adapters = [judged.round.adapters[k] for k in judged.merged]
    cuts = possible_cuts(adapters, settings) if engine.stores else ()
    stores = engine.stores if cuts else engine.stores // 2  # for vectors, and for factors
    room, read_room = (
        size // max(1, len(modules))
        for size in (max(stores, _room_for_vectors(engine.device)), 0 if cuts else stores)
    )
    mean = WeightedMean(judged.merged, weights, room, cuts, read_room)
    on_device = not any(mean.overcomplete(factors.round, m) for m in modules)

    spectra: dict[str, Spectrum] = {}
    first = _batches(mean, factors, modules)
    for found in engine.map(
        "merging", partial(decompose, mean), first, factors, on_device=on_device, keeping=True
    ):
        spectra.update(found)
    values = {module: spectra[module].values for module in modules}
    most = largest_sums(judged)
    for module in modules:
        check_sum(module, values[module], most[module])

    assert judged.round.output is not None
    plan = plan_adapter(values, adapters, settings)
    heads, remarks = plan_heads(judged, settings)
    plan = replace(plan, warnings=(*plan.warnings, *remarks))
    contents = [(adapter.content(), w) for adapter, w in zip(adapters, weights, strict=True)]
    writer = AdapterWriter(
        plan, adapters, judged.round.output, settings, destination, heads, contents
    )

    second = [
        look
        for some in first
        for look in second_looks(
            some, spectra, sum(mean.ranks(factors.round, some[0])),
            None if factors.cache is None else _GPU_BATCH,
        )
    ]  # fmt: skip
    second.sort(key=lambda look: look.modules)
    for written in engine.map(
        "writing", partial(cut, mean, plan.cut), second, factors, on_device=on_device, keeping=True
    ):
        for module, pair in written.items():
            writer.put(module, pair)
    scaled = [(head, plan.scale.scaling) for head in heads]
    for head, tensor in zip(heads, merged_heads(judged, scaled, factors, engine), strict=True):
        writer.put_head(head, tensor)
    factors.check()
    return writer.finish()


def _room_for_vectors(device: Device) -> int:
    """Bytes of all modules' singular vectors that may be kept for the second look."""
    return (
        KEPT_BETWEEN_PASSES
        if device.name == "cpu"
        else max(KEPT_BETWEEN_PASSES, int(_VECTORS_SHARE * device.memory))
    )


def _batches(mean: WeightedMean, factors: RoundFactors, modules: Sequence[str]) -> list[list[str]]:
    """Modules in batches of one shape in which every client has one rank, in order of name; one
    with an over-complete stack is alone."""
    round_, alike = factors.round, dict[object, list[str]]()
    for module in modules:
        ranks, shape = mean.ranks(round_, module), round_.module_shapes[module]
        alone = is_overcomplete(sum(ranks), shape)
        alike.setdefault(module if alone else (shape, *ranks), []).append(module)
    found = []
    for some in alike.values():
        size = together(sum(mean.ranks(round_, some[0])), _DECOMPOSED_TOGETHER)
        if factors.cache is not None:
            size = _GPU_BATCH
        found += [some[start : start + size] for start in range(0, len(some), size)]
    return sorted(found)
