"""Second pass: merge the clients with a weight, module by module, and say what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clair_cli.maths.merge import plain_distance, weighted_sum
from clair_cli.maths.stack import Factors
from clair_cli.workflow.judging import Judged
from clair_cli.workflow.passes import naming_module, previous_of, updates_of
from clair_cli.workflow.settings import Settings
from clair_cli.workflow.writing import AdapterWriter, WrittenAdapter


@dataclass(frozen=True)
class Merged:
    """The merged adapter and its distance to the plain mean of all comparable clients."""

    adapter: WrittenAdapter
    plain_mean_distance: float | None


def merge_round(judged: Judged, settings: Settings) -> Merged:
    """Merge the clients with a weight. Sums run in order of content.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
    """
    shapes = judged.round.module_shapes
    adapters = [judged.round.adapters[k] for k in judged.merged]
    assert judged.round.output is not None
    writer = AdapterWriter(adapters, judged.round.output, settings)
    distance = size = 0.0
    for done, (module, shape) in enumerate(shapes.items()):
        settings.tell("merging", done, 2 * len(shapes))
        with naming_module(module):
            clients, weights, plain = _parts(judged, module)
            writer.observe(module, weighted_sum(clients, weights, shape))
            moved, norm = plain_distance(clients, weights, plain, shape)
        distance, size = math.hypot(distance, moved), math.hypot(size, norm)
    writer.plan()
    for done, (module, shape) in enumerate(shapes.items()):
        settings.tell("merging", len(shapes) + done, 2 * len(shapes))
        with naming_module(module):
            clients, weights, _ = _parts(judged, module)
            writer.put(module, weighted_sum(clients, weights, shape))
    return Merged(writer.finish(), distance / size if size > 0 else None)


def _parts(
    judged: Judged, module: str
) -> tuple[list[Factors], tuple[float, ...], tuple[float, ...]]:
    """One module's updates with their weights, merged and plain; the previous adapter, if
    given, is one more with weight 1: the mean update goes on top of it."""
    previous = previous_of(judged.round, module)
    clients = updates_of(judged.round, module, previous)
    if previous is None:
        return clients, judged.weights, judged.plain_weights
    return [*clients, previous], (*judged.weights, 1.0), (*judged.plain_weights, 1.0)
