"""Coherent groups of clients, from their pairwise similarity over modules.

Two parts P and Q are one group when they are about as similar to each other as within:

    level(P, Q) >= GROUP_RATIO * min(level(P), level(Q))
    level(P, Q) >= LONER_RATIO * max(level(P), level(Q))

Where both fail to hold and the pairs are separated too (SEPARATION), they are two groups. The
first line sets apart groups of which each shares something that the other does not (colluders,
a backdoor), the second what is simply unlike the group. A weakly trained or partly overlapping
client has a smaller share of the same thing, and stays. A single client has no level of its
own: only the second line holds for it. These are shares, not counts: nobody is asked how many
clients are bad. The lines are ours; the paper's abstract asks for "mild separation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clair_cli.maths.evidence.pair_levels import N_SE, PairLevels, over_modules
from clair_cli.maths.judge.thresholds import (
    GROUP_RATIO,
    LONER_RATIO,
    ONE_THING,
    SEPARATION,
    TIGHTER,
)


def coherent(levels: PairLevels, first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two groups of clients share one thing (see the module's text).

    Kept apart only where the levels say so *and* the pairs do: nearly every pair inside the
    larger group above nearly every pair between the two. Honest clients whose data overlap to
    different degrees have pairs of all levels, so that parts of them differ in the mean, but
    are not separated.
    """
    by_module = levels.between(first, second)
    between = over_modules(by_module)
    if not between.mean > 0:  # also refuses NaN
        return False
    larger = max(first, second, key=lambda g: (len(g), -min(g)))
    if len(larger) < 2:
        return float(np.nanmin(by_module)) > 0 if levels.few else between.low > 0
    if len(larger) < 3:  # too few pairs to tell levels apart: all must be positive
        return bool((levels.mean[np.ix_(list(first), list(second))] > 0).all())
    smaller = first if larger is second else second
    if levels.separation(larger, smaller) < SEPARATION and not tighter(levels, smaller, larger):
        return True
    if len(smaller) > 1 and _one_thing(levels, larger, smaller, between.mean):
        return True
    if len(larger) == 3 and not levels.few and not levels.clear(larger, smaller):
        return True  # three pairs are easily all above the others by chance
    inside = [levels.within(g) for g in (first, second) if len(g) > 1]
    inside.sort(key=lambda values: over_modules(values).mean)

    def reaches(values: NDArray[np.float64], ratio: float) -> bool:
        margin = levels.margin(first, second, values, ratio)
        return (margin.high if levels.few else margin.mean) >= 0

    if len(inside) == 2 and not reaches(inside[0], GROUP_RATIO):
        return False
    return reaches(inside[-1], LONER_RATIO)


def _one_thing(
    levels: PairLevels, first: Sequence[int], second: Sequence[int], between: float
) -> bool:
    """Whether two groups hold different amounts of one thing: then the similarity between them
    is the geometric mean of their own levels."""
    inside = levels.level(first).mean * levels.level(second).mean
    return inside > 0 and between >= ONE_THING * inside**0.5


def tighter(levels: PairLevels, group: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a group of three or more is clearly apart from another that shares far less:
    what the other has inside may then be no more than what all have in common."""
    if len(group) < 3 or not levels.separation(group, other) >= SEPARATION:
        return False
    return levels.level(group).mean >= TIGHTER * levels.level(other).mean


def coherent_groups(levels: PairLevels, clients: Sequence[int]) -> list[tuple[int, ...]]:
    """Partition clients into the largest groups that stay coherent, largest first.

    Average linkage gives the order of joining; a join that is not coherent, and everything
    above it, is undone, and what is left is joined where it is coherent all the same.
    Ties in size go to the higher level, then to the first client.
    """
    clients = list(clients)
    if len(clients) < 2:
        return [tuple(clients)] if clients else []
    from scipy.cluster.hierarchy import linkage  # a third of a second

    similarity = np.nan_to_num(levels.mean[np.ix_(clients, clients)], nan=0.0)
    distance = np.clip(1.0 - similarity, 0.0, 2.0)
    nodes: list[tuple[int, ...] | None] = [(c,) for c in clients]
    groups: set[tuple[int, ...]] = set()
    pairs = distance[np.triu_indices(len(clients), 1)]
    for left_index, right_index, *_ in linkage(pairs, method="average"):
        left, right = nodes[int(left_index)], nodes[int(right_index)]
        if left is not None and right is not None and coherent(levels, left, right):
            nodes.append(tuple(sorted(left + right)))
            continue
        groups.update(g for g in (left, right) if g is not None)
        nodes.append(None)
    if nodes[-1] is not None:
        groups.add(nodes[-1])
    groups = _joined(levels, groups)
    alone = sorted(g[0] for g in groups if len(g) == 1)
    if 2 < len(alone) < len(clients):  # a refused join parted them: they may share without it
        groups = {g for g in groups if len(g) > 1} | set(coherent_groups(levels, alone))

    def order(group: tuple[int, ...]) -> tuple[float, float, int]:
        level = levels.level(group).mean if len(group) > 1 else 0.0
        return -len(group), -level, group[0]

    return sorted(groups, key=order)


def _joined(levels: PairLevels, groups: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Join what is coherent: anything with the largest group, and parts of three or more with
    one another (a join undone above them left them apart), the most similar first."""

    def size(group: tuple[int, ...]) -> tuple[float, float, int]:
        return len(group), levels.level(group).mean if len(group) > 1 else 0.0, -group[0]

    left = sorted(groups)
    while True:
        largest = max(left, key=size)
        pairs = [
            (over_modules(levels.between(g, h)).mean, g, h)
            for i, g in enumerate(left)
            for h in left[i + 1 :]
            if (largest in (g, h) and len(largest) > 1) or min(len(g), len(h)) > 2
        ]
        pairs.sort(key=lambda pair: (-np.nan_to_num(pair[0], nan=-2.0), pair[1], pair[2]))
        found = next(((g, h) for _, g, h in pairs if coherent(levels, g, h)), None)
        if found is None:
            return set(left)
        left = sorted([g for g in left if g not in found] + [tuple(sorted(found[0] + found[1]))])


@dataclass(frozen=True)
class Alignment:
    """One client's similarity to a group, over the group's own level.

    Attributes:
        similarity: mean similarity to the group's other members, negative ones as zero unless
            most are.
        ratio: `similarity` over the mean similarity among the group's other members; about 1
            for a member and 0 for an unrelated client; NaN if it can't be known.
        se: standard error of `ratio`, paired over modules (0 below two: not known).
    """

    similarity: float
    ratio: float
    se: float

    @property
    def high(self) -> float:
        return self.ratio + N_SE * self.se


def alignment(levels: PairLevels, client: int, group: Sequence[int]) -> Alignment:
    """Similarity of one client to a group it may belong to (leave-one-out).

    A few members who turn against one client must not decide how alike it is: where most of
    its similarities are positive, the others count as zero.
    """
    others = [k for k in group if k != client]
    to_group = levels.between([client], others)
    inside = levels.within_others(group, client) if len(others) > 1 else to_group
    similarity = over_modules(to_group).mean
    pairs = levels.mean[client, others]
    pairs = pairs[~np.isnan(pairs)]
    if len(pairs) and np.median(pairs) > 0:
        similarity += float(pairs.clip(min=0.0).mean() - pairs.mean())
    level = over_modules(np.where(np.isnan(to_group), np.nan, inside)).mean
    if not level > 0:
        return Alignment(similarity, float("nan"), 0.0)
    ratio = similarity / level
    return Alignment(similarity, ratio, levels.margin([client], others, inside, ratio).se / level)
