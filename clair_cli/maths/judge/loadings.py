"""Single clients inside a coherent group: who has little of what the others share, and who
shares something more.

A pair of heterogeneous clients says little, since their data overlap by chance; the mean of a
client's pairs says much more. Two looks at those means:

    trimmed     the largest gap between the clients' loadings (mean similarity to the rest over
                the rest's own level): those below it are no measure of what a member looks like.
    inner group a minority, all of whom are more similar to one another than to the rest while
                all the rest are more similar to one another than to them: they share something
                besides, as clients with one backdoor do.

Neither is a verdict on anybody; verdicts.py makes those. The bars are ours, measured on trained
cohorts (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.judge.thresholds import (
    COPY_DISTANCE,
    COPY_QUANTILE,
    GAP_DEVIATIONS,
    GAP_RATIO,
    GROUP_RATIO,
    INNER_PREFERENCE,
    INNER_RATIO,
    MIN_INNER,
    MIN_WITH_COPIES,
    REST_PREFERENCE,
)

Matrix = NDArray[np.float64]


def _table(levels: PairLevels, group: Sequence[int]) -> Matrix:
    """Similarities inside a group, (n, n), zero diagonal. A pair without a common module gets
    the mean of what its two clients have with the others, so that it says nothing."""
    table: Matrix = levels.mean[np.ix_(list(group), list(group))]
    known = ~np.isnan(table)
    own = np.where(known, table, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    filled: Matrix = np.where(known, table, (own[:, None] + own[None, :]) / 2.0)
    np.fill_diagonal(filled, 0.0)
    return filled


def loadings(table: Matrix, members: NDArray[np.bool_]) -> Matrix:
    """Each client's mean similarity to the other members over those members' own level.

    Args:
        table: pairwise similarity, (n, n), zero diagonal.
        members: mask of at least three, (n,).

    Returns:
        Shape (n,); NaN where the others have no positive level.
    """
    count = members.sum() - members  # of the others
    to_members = table[:, members].sum(1)
    total = table[np.ix_(members, members)].sum()
    inside = (total - 2.0 * members * to_members) / (count * (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(inside > 0, to_members / count / inside, np.nan)


def trimmed(levels: PairLevels, group: Sequence[int]) -> tuple[int, ...]:
    """The group without the clients below the largest gap in its loadings, if there is one.

    At least half of the group, and three clients, stay.
    """
    current = tuple(group)
    least = max(3, (len(current) + 1) // 2)
    while len(current) > least:
        table = _table(levels, current)
        order = np.argsort(table.sum(1), kind="stable")
        widest, best = 0.0, 0
        for cut in range(1, len(current) - least + 1):
            members = np.ones(len(current), dtype=bool)
            members[order[:cut]] = False
            found = loadings(table, members)
            above, below = found[members], found[~members]
            if np.isnan(found).any():
                continue
            gap = float(above.min() - below.max())
            wide = above.mean() - below.max() >= GAP_DEVIATIONS * above.std(ddof=1)
            if wide and below.max() <= GAP_RATIO * above.min() and gap > widest:
                widest, best = gap, cut
        if not best:
            break
        dropped = {current[i] for i in order[:best]}
        current = tuple(k for k in current if k not in dropped)
    return current


def near_copies(levels: PairLevels, clients: Sequence[int]) -> dict[int, int]:
    """Clients that are far more alike than their similarities to the others explain.

    With one thing shared, similarity(j, k) is the product of what j and k hold of it, and each of
    these is seen in a middle similarity to the others. Clients beyond that are one voice, and
    so are those joined by a chain of them: in whatever order they are given.

    Returns:
        Client -> the first (in the given order) of those it is nearly the same as.
    """
    members = list(clients)
    if len(members) < MIN_WITH_COPIES:
        return {}
    from scipy.sparse.csgraph import connected_components  # a fifth of a second

    table = levels.mean[np.ix_(members, members)]
    known = [row[~np.isnan(row)] for row in table]  # neither itself nor without a common module
    typical = np.array([np.quantile(row, COPY_QUANTILE) if len(row) else 0.0 for row in known])
    middle = float(np.median(typical))
    expected = np.zeros_like(table)
    if middle > 0:
        expected = np.clip(np.outer(typical, typical) / middle, 0.0, 1.0)
    alike = 1.0 - table <= COPY_DISTANCE * (1.0 - expected)  # never where NaN
    _, label = connected_components(alike, directed=False)
    _, first_of = np.unique(label, return_index=True)
    first = first_of[label]
    return {k: members[first[i]] for i, k in enumerate(members) if first[i] != i}


def inner_group(levels: PairLevels, group: Sequence[int]) -> tuple[int, ...]:
    """A minority of three or more that shares something besides what all have; () if none."""
    members = list(group)
    if len(members) < 2 * MIN_INNER:
        return ()
    table = _table(levels, members)
    part = _best_split(table)
    if part is None:
        return ()
    inner, rest = (part, ~part) if part.sum() <= (~part).sum() else (~part, part)
    if part.sum() * 2 == len(members) and _level(table, part) < _level(table, ~part):
        inner, rest = rest, inner
    if not _apart(table, inner, rest) or _between(table, inner) > INNER_RATIO:
        return ()
    if table[np.ix_(inner, rest)].mean() > GROUP_RATIO * _level(table, rest):
        return ()
    return tuple(k for k, inside in zip(members, inner.tolist(), strict=True) if inside)


def stand_apart(levels: PairLevels, inner: Sequence[int], rest: Sequence[int]) -> bool:
    """Whether each client of two groups prefers its own, those of `inner` clearly so."""
    table = _table(levels, [*inner, *rest])
    part = np.arange(len(table)) < len(inner)
    return bool(len(inner) > 1 and len(rest) > 1) and _apart(table, part, ~part)


def _apart(table: Matrix, inner: NDArray[np.bool_], rest: NDArray[np.bool_]) -> bool:
    own, other = _preference(table, inner, rest), _preference(table, rest, inner)
    return own >= INNER_PREFERENCE and other >= REST_PREFERENCE


def _level(table: Matrix, part: NDArray[np.bool_]) -> float:
    n = int(part.sum())
    return float(table[np.ix_(part, part)].sum() / (n * (n - 1)))


def _between(table: Matrix, part: NDArray[np.bool_]) -> float:
    """Similarity between a part and the rest over the geometric mean of their levels."""
    within, degree = table[np.ix_(part, part)].sum(), table[part].sum()
    return float(_betweens(table, np.array([within]), np.array([degree]), part.sum()[None])[0])


def _betweens(table: Matrix, within: Matrix, degree: Matrix, size: NDArray[np.int64]) -> Matrix:
    """`_between` of many parts.

    Args:
        within: sum of each part's similarities to itself; degree: to everybody. size: its
            number of clients.

    Returns:
        One number per part; infinite where a part or its rest has no positive level.
    """
    rest, others = table.sum() - 2.0 * degree + within, len(table) - size
    first, second = within / (size * (size - 1)), rest / (others * (others - 1))
    least = 1e-12 * np.abs(table).max()  # what rounding leaves of zero
    positive = (first > least) & (second > least)
    scale = np.where(positive, first * second, 1.0) ** 0.5
    return np.where(positive, (degree - within) / (size * others) / scale, np.inf)


def _preference(table: Matrix, part: NDArray[np.bool_], rest: NDArray[np.bool_]) -> float:
    """Least ratio, over the part's clients, of similarity to the part and to the rest."""
    own = table[np.ix_(part, part)].sum(1) / (part.sum() - 1)
    other = table[np.ix_(part, rest)].mean(1)
    return float((own / np.maximum(other, 1e-12)).min()) if (own > 0).all() else 0.0


def _best_split(table: Matrix) -> NDArray[np.bool_] | None:
    """The two parts least similar for their own levels: spectral starts, then single moves."""
    n = len(table)
    degree = table.sum(1)
    if not degree.sum() > 0:
        return None
    _, vectors = np.linalg.eigh(table - np.outer(degree, degree) / degree.sum())
    best, value = None, np.inf
    sizes = np.arange(MIN_INNER, n - MIN_INNER + 1)
    for vector in vectors[:, -3:].T:
        order = np.argsort(vector, kind="stable")
        within = 2.0 * np.tril(table[np.ix_(order, order)]).sum(1).cumsum()
        found = _betweens(table, within[sizes - 1], degree[order].cumsum()[sizes - 1], sizes)
        if found.min() < value:
            value = found.min()
            best = np.zeros(n, dtype=bool)
            best[order[: sizes[found.argmin()]]] = True
    while best is not None:
        sign = np.where(best, -1, 1)  # of the change when a client changes sides
        to_part = table[:, best].sum(1)
        size = best.sum() + sign
        allowed = (size >= MIN_INNER) & (size <= n - MIN_INNER)
        within = table[np.ix_(best, best)].sum() + 2.0 * sign * to_part
        found = _betweens(table, within, degree[best].sum() + sign * degree, size)
        found = np.where(allowed, found, np.inf)
        k = int(found.argmin())
        if not found[k] < value - 1e-12:
            break
        value = found[k]
        best[k] = not best[k]
    return best
