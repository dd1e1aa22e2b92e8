"""Second pass: merge the clients with a weight, module by module, and say what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clair_cli.maths.lowrank import Product
from clair_cli.maths.merge import plain_distance, weighted_sum
from clair_cli.workflow.judging import Judged
from clair_cli.workflow.passes import previous_of, updates_of
from clair_cli.workflow.settings import Settings
from clair_cli.workflow.writing import WrittenAdapter, write_adapter


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
    distances: dict[str, tuple[float, float]] = {}
    steps = 0

    def produce(module: str) -> Product:
        nonlocal steps
        steps += 1
        settings.tell("merging", min(steps, 2 * len(shapes)), 2 * len(shapes))
        previous = previous_of(judged.round, module)
        clients = updates_of(judged.round, module, previous)
        weights, plain = judged.weights, judged.plain_weights
        if previous is not None:  # the mean update goes on top of it
            clients, weights, plain = [*clients, previous], (*weights, 1.0), (*plain, 1.0)
        if module not in distances:
            distances[module] = plain_distance(clients, weights, plain, shapes[module])
        return weighted_sum(clients, weights, shapes[module])

    adapters = [judged.round.adapters[k] for k in judged.merged]
    adapter = write_adapter(produce, list(shapes), adapters, settings)
    distance = math.hypot(*(d for d, _ in distances.values()))
    size = math.hypot(*(n for _, n in distances.values()))
    return Merged(adapter, distance / size if size > 0 else None)
