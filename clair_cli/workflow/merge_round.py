"""Second pass: merge the clients with a weight, module by module, and say what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clair_cli.engine.device import Engine
from clair_cli.engine.stacks import naming_module
from clair_cli.maths.merge.mean import plain_distance
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.settings import Settings
from clair_cli.workflow.bounds import check_sum, largest_sums
from clair_cli.workflow.judge import Judged
from clair_cli.workflow.merge import Merger, Seen
from clair_cli.workflow.outputs import Destination
from clair_cli.workflow.write import AdapterWriter, WrittenAdapter


@dataclass(frozen=True)
class Merged:
    """The merged adapter and its distance to the plain mean of all comparable clients."""

    adapter: WrittenAdapter
    plain_mean_distance: float | None


def merge_round(
    judged: Judged,
    settings: Settings,
    engine: Engine,
    destination: Destination,
) -> Merged:
    """Merge the clients with a weight. Sums run in order of content.

    Args:
        destination: of the adapter, as it is made; what an earlier try left there goes.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
        ArithmeticError: see `check_sum`.
    """
    modules = judged.written
    adapters = [judged.round.adapters[k] for k in judged.merged]
    assert judged.round.output is not None
    destination.close()
    writer = AdapterWriter(adapters, judged.round.output, settings, destination)
    merger = Merger(judged, engine)
    seen: Seen = {}
    for found in merger.each("merging", merger.observe, merger.batches(modules)):
        seen.update(found)
    most = largest_sums(judged)
    for module in modules:
        check_sum(module, seen[module][0], most[module])
        writer.observe(module, seen[module][0])
    cores = {module: seen.pop(module)[1] for module in modules}
    writer.plan()

    def cut(some: Sequence[str]) -> dict[str, WrittenModule]:
        with naming_module(some[0]):
            own = [cores.pop(module) for module in some]
            if any(c is not None and c.n_vectors < min(writer.rank, len(c.values)) for c in own):
                found = merger.observe(some, kept=False)
                own = [found[module][1] for module in some]
            written: dict[str, WrittenModule] = {}
            for modules, alike in merger.alike(some, own):
                exact = merger.leading(modules, alike, writer.rank, writer.dtype)
                written.update(writer.cut(modules, exact))
            return written

    for written in merger.each("writing", cut, merger.batches(modules, cores)):
        for module, factors in written.items():
            writer.put(module, factors)
    merger.stacks.check()
    return Merged(writer.finish(), _plain_distance(judged))


def _plain_distance(judged: Judged) -> float | None:
    """Distance of the merged update to the plain mean of all comparable clients, over the norm
    of the latter; from the pairs' inner products in every module."""
    evidence = judged.evidence
    assert evidence is not None
    distance = size = 0.0
    merged, nothing = set(judged.merged_modules), [0.0] * len(judged.weights)
    for name, cosines, norms in zip(
        judged.round.module_shapes, evidence.matrix.value, evidence.norms, strict=True
    ):
        inner = torch.nan_to_num(cosines, nan=0.0) * norms[:, None] * norms[None, :]
        moved, norm = plain_distance(
            inner, judged.weights if name in merged else nothing, judged.plain_weights
        )
        distance, size = math.hypot(distance, moved), math.hypot(size, norm)
    return distance / size if size > 0 else None
