"""Levels of similarity between groups of clients, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Standard errors on either side of a level that count as doubt.
N_SE = 2.0
# Least number of modules for a standard error over modules.
MIN_MODULES = 4


@dataclass(frozen=True)
class Level:
    """A mean over modules with its standard error, which is 0 (not known) below two modules."""

    mean: float
    se: float

    @property
    def high(self) -> float:
        """The mean plus N_SE standard errors."""
        return self.mean + N_SE * self.se

    @property
    def low(self) -> float:
        """The mean minus N_SE standard errors."""
        return self.mean - N_SE * self.se


def over_modules(values: NDArray[np.float64]) -> Level:
    """Mean and standard error of one number per module, NaN where a module has none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Level(float("nan"), 0.0)
    se = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0
    return Level(float(known.mean()), se)


# Size from which on sums over a whole group are kept for all its members, and for how many groups.
_LARGE, _SUMS_KEPT = 32, 4


@dataclass(frozen=True)
class _Sums:
    """Sums over a group's similarities in every module, and how many of them are known.

    Attributes:
        totals, counts: of each client's similarities to the group, (n_modules, n_clients).
        total, count: of the similarities inside the group, each pair twice, (n_modules,).
    """

    totals: NDArray[np.float64]
    counts: NDArray[np.int64]
    total: NDArray[np.float64]
    count: NDArray[np.int64]


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
        self._sums: dict[tuple[int, ...], _Sums] = {}

    @property
    def few(self) -> bool:
        """Whether there are fewer than MIN_MODULES modules, too few for a standard error."""
        return len(self._table) < MIN_MODULES

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

    def within_others(self, group: Sequence[int], client: int) -> NDArray[np.float64]:
        """`within` of a group without one client, who need not be a member. For large groups it is
        computed from sums over the whole group, which are kept for the next member."""
        others = [k for k in group if k != client]
        if len(others) < _LARGE:
            return self.within(others)
        whole = tuple(group)
        if whole not in self._sums:
            if len(self._sums) >= _SUMS_KEPT:
                self._sums.clear()
            self._sums[whole] = self._summed(whole)
        sums = self._sums[whole]
        if len(others) == len(whole):
            return _ratio(sums.total, sums.count)
        total = sums.total - 2.0 * sums.totals[:, client]
        return _ratio(total, sums.count - 2 * sums.counts[:, client])

    def _summed(self, group: tuple[int, ...]) -> _Sums:
        inside = np.zeros(self._table.shape[2])
        inside[list(group)] = 1.0
        totals = self._table @ inside
        counts = np.rint(self._known @ inside).astype(np.int64)
        members = list(group)
        return _Sums(totals, counts, totals[:, members].sum(1), counts[:, members].sum(1))

    def level(self, group: Sequence[int]) -> Level:
        """`within`, averaged over modules."""
        return over_modules(self.within(group))

    def separation(self, group: Sequence[int], others: Sequence[int]) -> float:
        """Share of comparisons in which a pair inside `group` is more similar than a pair
        between it and `others`: 0.5 when they are alike, 1 when the blocks are clean; NaN
        with fewer than three members, whose one pair says nothing about a spread."""
        members = [k for k in group if k not in others]
        inside = self.mean[np.ix_(members, members)][np.triu_indices(len(members), 1)]
        across = self.mean[np.ix_(members, list(others))].ravel()
        inside, across = inside[~np.isnan(inside)], across[~np.isnan(across)]
        if len(members) < 3 or not len(inside) or not len(across):
            return float("nan")
        below = np.searchsorted(np.sort(across), inside, side="left")  # of `across`, by inside pair
        return float(below.sum() / (len(inside) * len(across)))

    def clear(self, group: Sequence[int], others: Sequence[int]) -> bool:
        """Whether the least similar pair inside lies N_SE standard errors above the most
        similar pair between `group` and `others`."""
        members = [k for k in group if k not in others]
        block = self.mean[np.ix_(members, members)]
        rows, columns = np.triu_indices(len(members), 1)
        inside, across = block[rows, columns], self.mean[np.ix_(members, list(others))]
        if not len(inside) or np.isnan(inside).all() or np.isnan(across).all():
            return False
        least = int(np.nanargmin(inside))
        row, column = np.unravel_index(int(np.nanargmax(across)), across.shape)
        low = members[int(rows[least])], members[int(columns[least])]
        high = members[int(row)], others[int(column)]
        low_se, high_se = (over_modules(self.between([j], [k])).se for j, k in (low, high))
        se = float(np.hypot(low_se, high_se))
        return bool(self.mean[low] - self.mean[high] >= N_SE * se)

    def margin(
        self, first: Sequence[int], second: Sequence[int], inside: NDArray[np.float64], ratio: float
    ) -> Level:
        """`between(first, second) - ratio * inside`, with its standard error.

        The standard error is over modules; with fewer than MIN_MODULES of them it is over the pairs
        between the two groups.

        Args:
            inside: one number per module, (n_modules,), such as a group's `within`.
        """
        margin = over_modules(self.between(first, second) - ratio * inside)
        if not self.few:
            return margin
        pairs = self.mean[np.ix_(list(first), list(second))]
        pairs = pairs[~np.isnan(pairs)]
        se = float(pairs.std(ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else 0.0
        return Level(margin.mean, se)


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
