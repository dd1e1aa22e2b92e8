"""An estimate of the memory that a round takes in addition to torch itself, made before its first
tensor is read."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.adapters.adapter import DTYPE_BYTES
from clair_cli.adapters.experts import ExpertTensors
from clair_cli.cohort.round import Round
from clair_cli.engine.engine import Engine
from clair_cli.engine.scratch import LARGE
from clair_cli.maths.evidence.overcomplete import COMPARED_DIM
from clair_cli.maths.evidence.tables import BLOCK_BYTES
from clair_cli.workflow.available_memory import available_memory
from clair_cli.workflow.batches import batches, kept_grams, largest_ranks, overcomplete
from clair_cli.workflow.read import KEPT_BYTES

_FLOAT = 8
# Matrices of the size of one Gram that the work on a module holds.
_SQUARES = 8
# Numbers per client that the work on a module with an over-complete stack holds.
_OVERCOMPLETE_NUMBERS = 4 * COMPARED_DIM**2
# Tables of pairs of every module: three similarities, and their values for unrelated clients; while
# judging, up to three of levels too, and what of them is known. Large ones are files: `scratch`.
# Beside them, intermediate results of so many blocks; measured with 8 clients of 3,000 modules, 20
# of 1,000, 60 of 600 and 400 of 100.
_PAIR_TABLES, _KEPT_TABLES, _BLOCKS = 6, 10, 14
# Bytes of one client's row for one module in the report, as objects and as text.
_ROW_BYTES = 1100


def read_memory(round_: Round) -> int:
    """Bytes of the clients' files that are held from the first reading on."""
    files = sum(
        DTYPE_BYTES[m.dtype] * m.rank * sum(m.shape)
        for adapter in round_.adapters
        for m in adapter.modules.values()
    )
    return min(files, KEPT_BYTES)


def work_memory(round_: Round, engine: Engine) -> int:
    """Bytes of main memory at the highest point, for the batches in work and the results that are
    kept of all modules. Memory of a GPU does not count.

    The estimate takes the largest batches to be in work at the same time.
    """
    round_, working, kept = round_.compared, 0, 0
    if engine.device.name == "cpu":
        work = sorted((_in_work(round_, b) for b in batches(round_, engine.device)), reverse=True)
        working = sum(work[: engine.threads])
        kept = 2 * sum(kept_grams(round_).values())
    sources = (adapter.source for adapter in round_.adapters)
    kept += sum(s.kept_bytes for s in sources if isinstance(s, ExpertTensors))
    clients = len(round_.adapters)
    rows = len(round_.module_shapes) * clients
    table = rows * _FLOAT * clients
    kept_table = table if table < LARGE else 0
    comparing = _PAIR_TABLES * kept_table
    judging = _KEPT_TABLES * kept_table + _BLOCKS * min(table, BLOCK_BYTES) + rows * _ROW_BYTES
    return kept + max(working + comparing, judging)


def check_memory(round_: Round, engine: Engine, needed: int) -> None:
    """Refuse a round that needs more memory than is available.

    Args:
        needed: bytes, from `work_memory`.

    Raises:
        MemoryError: with the memory needed and available.
    """
    left = available_memory()
    if left is not None and needed > left:
        raise MemoryError(
            f"{len(round_.adapters):,} clients with {len(round_.module_shapes):,} modules need "
            f"about {needed / 1e6:,.0f} MB on {engine.threads} threads, and "
            f"{left / 1e6:,.0f} MB are free"
        )


def _in_work(round_: Round, modules: Sequence[str]) -> int:
    """Bytes for the work on one batch: the factors side by side, and the matrices made of them."""
    shape, n_components = round_.module_shapes[modules[0]], sum(largest_ranks(round_, modules))
    squares = _SQUARES * n_components * n_components
    if overcomplete(round_, modules[0]):
        squares = len(round_.adapters) * _OVERCOMPLETE_NUMBERS + 3 * min(shape) ** 2
    return _FLOAT * len(modules) * (_stored(round_, modules) * sum(shape) + squares)


def _stored(round_: Round, modules: Sequence[str]) -> int:
    """Number of rank-one components in memory. Those of the previous adapter are part of every
    difference, and are stored once."""
    ranks = largest_ranks(round_, modules)
    common = round_.previous_rank(modules[0])
    return sum(ranks) - common * max(0, sum(rank > 0 for rank in ranks) - 1)
