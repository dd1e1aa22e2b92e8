"""Batches of modules that are compared together; and the Grams that are kept for the merge."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.cohort.round import Round
from clair_cli.engine.device import Device
from clair_cli.maths.factors.grams import packed_bytes
from clair_cli.maths.factors.stack import is_overcomplete

# Bytes of stacked float64 factors and Grams that one batch of modules may take on a CPU; and on a
# GPU, as a share of its memory and in bytes.
CPU_BATCH_BYTES = 96 * 2**20
_BATCH_SHARE, _MOST_BATCH_BYTES = 1 / 64, 2 * 2**30
# Most modules of a batch on a CPU: enough for Python's time between products not to count, and few
# enough for a batch on every thread.
CPU_BATCH = 4
# Bytes of intermediate results that one pass over the modules may keep for the next: Grams for the
# merge, singular vectors for the cut. Others are computed again.
KEPT_BETWEEN_PASSES = 512 * 2**20


def batches(round_: Round, device: Device) -> list[list[str]]:
    """All modules in batches of one shape that fit the bounds on memory.

    On a CPU every client has the same rank in all modules of a batch. On a GPU its rank may differ
    and only the previous adapter's rank is the same, because a client's own components and those of
    the previous adapter are told apart by their place. A module whose stack is over-complete is a
    batch of its own.

    The largest batches come first, so that no thread starts one when the others are nearly done.
    """
    alike: dict[tuple[tuple[int, int], int, tuple[int, ...]], list[str]] = {}
    sized: list[tuple[int, list[str]]] = []
    for module, shape in round_.module_shapes.items():
        ranks = largest_ranks(round_, [module])
        if overcomplete(round_, module):
            sized.append((sum(ranks) * sum(shape), [module]))
        else:
            before = round_.previous_rank(module)
            key = (shape, before, tuple(ranks) if device.name == "cpu" else ())
            alike.setdefault(key, []).append(module)
    for (shape, _, _), modules in alike.items():
        n_components, widths = sum(largest_ranks(round_, modules)), sum(shape)
        size = _batch_size(n_components, widths, device)
        for start in range(0, len(modules), size):
            batch = modules[start : start + size]
            sized.append((n_components * widths * len(batch), batch))
    sized.sort(key=lambda pair: (-pair[0], pair[1]))
    return [batch for _, batch in sized]


def _batch_size(n_components: int, widths: int, device: Device) -> int:
    """Number of modules in a batch.

    Args:
        n_components: rank-one components of all clients in one module.
        widths: rows and columns of one module together.
    """
    each = 8 * max(1, n_components * (widths + 4 * n_components))
    if device.name == "cpu":
        return max(1, min(CPU_BATCH, CPU_BATCH_BYTES // each))
    return max(1, min(_MOST_BATCH_BYTES, int(device.memory * _BATCH_SHARE)) // each)


def largest_ranks(round_: Round, modules: Sequence[str]) -> list[int]:
    """Number of columns of each client in a stack of these modules: its largest rank."""
    return [max(ranks) for ranks in zip(*(round_.module_ranks[m] for m in modules), strict=True)]


def overcomplete(round_: Round, module: str) -> bool:
    """Whether the module's stack is over-complete, so that no Grams are computed of it."""
    return is_overcomplete(sum(largest_ranks(round_, [module])), round_.module_shapes[module])


def kept_grams(round_: Round) -> dict[str, int]:
    """Bytes of the Grams that are kept for the merge, by module: as many as fit, beginning with
    those that take the longest to compute. No Grams are kept with a previous adapter: it is
    subtracted before delta weights are compared, and not before they are summed."""
    if round_.previous is not None:
        return {}
    made = [m for m in round_.module_shapes if not overcomplete(round_, m)]
    made.sort(key=lambda m: (-sum(round_.module_shapes[m]), m))
    found, room = {}, KEPT_BETWEEN_PASSES
    for module in made:
        size = packed_bytes(sum(largest_ranks(round_, [module])))
        if size <= room:
            found[module] = size
            room -= size
    return found
