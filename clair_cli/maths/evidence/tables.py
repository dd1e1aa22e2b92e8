"""Tables of all pairs of clients in all modules: of many clients far more numbers than fit memory.

Whoever makes such a table takes its memory from `Allocate`, and works on it in blocks of clients,
which depend on its shape alone: the same table gives the same numbers, whoever computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]
"""Makes an empty CPU tensor of a shape and a dtype."""

BLOCK_BYTES = 64 * 2**20
"""The part of a table in float64 that is worked on at once, with a few intermediate results."""

_MOST_NUMBERS = BLOCK_BYTES // 8


def in_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An ordinary empty tensor."""
    return torch.empty(*shape, dtype=dtype)


def blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of a table (n_modules, n_clients, n_clients), or the like, to work on at once: clients
    of the first of the two axes."""
    n_modules, n, columns = shape
    step = max(1, _MOST_NUMBERS // max(1, n_modules * columns))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def in_blocks(work: Callable[[slice], Tensor], shape: Sequence[int]) -> Tensor:
    """Results of some work on rows of clients, one below the other, (n_clients, ...).

    Args:
        shape: of the table, as for `blocks`; if there is no client, the work is asked for none.
    """
    return torch.cat([work(rows) for rows in blocks(shape)] or [work(slice(0, 0))])
