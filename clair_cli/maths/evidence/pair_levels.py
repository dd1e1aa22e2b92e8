"""Levels of similarity between groups of clients, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.evidence.tables import Allocate, blocks, in_memory

# Up to this many pairs are copied to be summed.
_FEW_PAIRS = 10_000
# Least number of modules for a standard error over modules.
MIN_MODULES = 4


@dataclass(frozen=True)
class Level:
    """A mean over modules with its standard error, which is 0 (not known) below two modules."""

    mean: float
    se: float


def over_modules(values: NDArray[np.float64]) -> Level:
    """Mean and standard error of one number per module, NaN where a module has none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Level(float("nan"), 0.0)
    se = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0
    return Level(float(known.mean()), se)


class PairLevels:
    """Mean similarities of blocks of pairs in every module.

    Args:
        similarity: of all pairs; counted is what is above the value for unrelated clients.
        allocate: makes the memory for as many numbers as the similarities are.

    Attributes:
        mean: over modules, (n_clients, n_clients); NaN for a pair without a common module.
    """

    def __init__(self, similarity: PairTable, allocate: Allocate = in_memory) -> None:
        n_modules, n, _ = shape = similarity.value.shape
        # sums over pairs then run along the modules
        self._by_pair = allocate((n, n, n_modules), torch.float64).numpy()
        self._known_by_pair = allocate((n, n, n_modules), torch.bool).numpy()
        self.mean, count = np.empty((n, n)), 0
        for rows in blocks(shape):
            table = excess_table(similarity.rows(rows)).numpy()
            own = np.arange(rows.start, rows.stop)
            table[:, own - rows.start, own] = np.nan
            known = ~np.isnan(table)
            table[~known] = 0.0
            count += int(known.sum())
            self.mean[rows] = _ratio(table.sum(0), known.sum(0))
            self._by_pair[rows] = table.transpose(1, 2, 0)
            self._known_by_pair[rows] = known.transpose(1, 2, 0)
        self._complete = count == n_modules * n * (n - 1)

    def between(self, first: Sequence[int], second: Sequence[int]) -> NDArray[np.float64]:
        """Mean over all pairs of a client in `first` and another in `second`, (n_modules,); NaN
        where no pair is known."""
        total = self._sums(self._by_pair, first, second)
        if not self._complete:
            return _ratio(total, self._sums(self._known_by_pair, first, second))
        same = Counter(second)
        count = len(first) * len(second) - sum(same[k] for k in first)
        return _ratio(total, np.array(count))

    @staticmethod
    def _sums(table: NDArray[Any], first: Sequence[int], second: Sequence[int]) -> NDArray[Any]:
        """Of a table over pairs, client by client: of many, no copy of the whole is made."""
        if len(first) * len(second) <= _FEW_PAIRS:
            return np.asarray(table[np.ix_(list(first), list(second))].sum((0, 1)))
        return np.asarray(sum(table[k, list(second)].sum(0) for k in first))

    def without_lowest(self, client: int, others: Sequence[int]) -> NDArray[np.float64]:
        """Mean over a client's pairs with others but for the lowest in each module, (n_modules,):
        what no one of them alone makes low. NaN where fewer than two pairs are known."""
        chosen = [k for k in others if k != client]
        values, known = self._by_pair[client, chosen], self._known_by_pair[client, chosen]
        count = known.sum(0)
        lowest = np.where(known, values, np.inf).min(0, initial=np.inf)
        total = values.sum(0) - np.where(count > 1, lowest, 0.0)
        return _ratio(total, np.where(count > 1, count - 1, 0))

    def within(self, group: Sequence[int]) -> NDArray[np.float64]:
        """Mean over all pairs inside a group of two or more, (n_modules,)."""
        return self.between(group, group)

    def level(self, group: Sequence[int]) -> Level:
        """`within`, averaged over modules."""
        return over_modules(self.within(group))


def _ratio(total: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def excess_table(table: PairTable) -> Tensor:
    """Similarities above chance, (value - null) / (1 - null): 0 is unrelated, 1 the same; a new
    tensor, float64, (n_modules, n_clients, n_clients)."""
    rest = (1.0 - table.null).clamp_min_(torch.finfo(table.null.dtype).tiny)
    return (table.value - table.null).div_(rest).double()
