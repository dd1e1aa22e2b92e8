"""Levels of similarity between groups of clients, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        excess: similarity above the value for unrelated clients in every module, shape
            (n_modules, n_clients, n_clients), NaN where a delta weight is zero.

    Attributes:
        mean: over modules, (n_clients, n_clients); NaN for a pair without a common module.
    """

    def __init__(self, excess: Tensor) -> None:
        table = excess.numpy().astype(np.float64)
        n = table.shape[1]
        table[:, np.arange(n), np.arange(n)] = np.nan
        self._known = ~np.isnan(table)
        self._table = np.where(self._known, table, 0.0)
        self._complete = int(self._known.sum()) == len(table) * n * (n - 1)
        # sums over pairs then run along the modules
        self._by_pair = np.ascontiguousarray(self._table.transpose(1, 2, 0))
        self._known_by_pair = self._known.transpose(1, 2, 0)
        self.mean = _ratio(self._table.sum(0), self._known.sum(0))

    def between(self, first: Sequence[int], second: Sequence[int]) -> NDArray[np.float64]:
        """Mean over all pairs of a client in `first` and another in `second`, (n_modules,); NaN
        where no pair is known."""
        block = np.ix_(list(first), list(second))
        total = self._by_pair[block].sum((0, 1))
        if not self._complete:
            return _ratio(total, self._known_by_pair[block].sum((0, 1)))
        same = Counter(second)
        count = len(first) * len(second) - sum(same[k] for k in first)
        return _ratio(total, np.array(count))

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


def excess_table(values: Sequence[Tensor], nulls: Sequence[Tensor]) -> Tensor:
    """Similarities above chance of all modules, (value - null) / (1 - null): 0 is unrelated, 1 the
    same; shape (n_modules, n_clients, n_clients).

    Args:
        values, nulls: of batches of modules, as in `similarity.PairTable`.
    """
    value, null = torch.cat(list(values)), torch.cat(list(nulls))
    return (value - null) / (1.0 - null).clamp_min(torch.finfo(null.dtype).tiny)
