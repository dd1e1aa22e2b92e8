"""How much memory a round will take beside torch itself, known before its first tensor is read."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.maths.evidence import CORE_DIM
from clair_cli.maths.wide_evidence import WIDE_DIM
from clair_cli.workflow.engine import Engine
from clair_cli.workflow.passes import batches, kept_grams, largest_ranks, wide
from clair_cli.workflow.reading import HANDOVER_BYTES
from clair_cli.workflow.round import Round

_FLOAT = 8
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# Matrices of the size of one module's Grams that its work holds.
_SQUARES = 8
# Numbers that a client's share of a module that is too wide for Grams takes.
_WIDE_NUMBERS = 4 * WIDE_DIM**2


def estimate_memory(round_: Round, engine: Engine) -> int:
    """Bytes of main memory at the highest point: the batches in work, what is kept of all, and the
    result; those on a GPU don't count.

    The largest batches are taken to be worked on at the same time.
    """
    here = 0
    if engine.device.name == "cpu":
        work = sorted((_in_work(round_, b) for b in batches(round_, engine.device)), reverse=True)
        here = sum(work[: engine.workers.threads]) + 2 * sum(kept_grams(round_).values())
    files = sum(
        _BYTES[m.dtype] * m.rank * sum(m.shape)
        for adapter in round_.adapters
        for m in adapter.modules.values()
    )
    clients = len(round_.adapters)
    evidence = len(round_.module_shapes) * clients * _FLOAT * (6 * clients + CORE_DIM**2)
    return here + min(files, HANDOVER_BYTES) + evidence


def _in_work(round_: Round, modules: Sequence[str]) -> int:
    """Of one batch: the factors side by side, and what is made of them."""
    shape, terms = round_.module_shapes[modules[0]], sum(largest_ranks(round_, modules))
    squares = _SQUARES * terms * terms
    if wide(round_, modules[0]):
        squares = len(round_.adapters) * _WIDE_NUMBERS + 3 * min(shape) ** 2
    return _FLOAT * len(modules) * (_stored(round_, modules) * sum(shape) + squares)


def _stored(round_: Round, modules: Sequence[str]) -> int:
    """Terms that lie in memory: of the previous adapter, which every update has, they do once."""
    ranks = largest_ranks(round_, modules)
    common = round_.previous_rank(modules[0])
    return sum(ranks) - common * max(0, sum(rank > 0 for rank in ranks) - 1)
