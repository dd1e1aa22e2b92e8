"""Clients that are nearly the same: copies of one another with small changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.judge.thresholds import COPY_DISTANCE

# What a client is similar to others by: above what 40 % who act together can set, and below what
# one of two equal groups sees inside.
_QUANTILE = 0.6
# Of fewer clients, each is most of what the others are held against.
_LEAST_CLIENTS = 5


def copy_sets(copies: Mapping[int, int]) -> list[tuple[int, ...]]:
    """The sets of clients that are nearly the same, the first one of each set in front.

    Args:
        copies: from `near_copies`.
    """
    firsts = sorted(set(copies.values()))
    return [(first, *sorted(k for k, j in copies.items() if j == first)) for first in firsts]


def near_copies(levels: PairLevels, clients: Sequence[int]) -> dict[int, int]:
    """Clients that are far more alike than their similarities to the others explain.

    With one thing shared, similarity(j, k) is the product of what j and k hold of it, and each of
    these is seen in a middle similarity to the others. Clients beyond that are one voice, and
    so are those joined by a chain of them: in whatever order they are given.

    Returns:
        Client -> the first (in the given order) of those it is nearly the same as.
    """
    members = list(clients)
    if len(members) < _LEAST_CLIENTS:
        return {}
    from scipy.sparse.csgraph import connected_components  # a fifth of a second

    table = levels.mean[np.ix_(members, members)]
    known = [row[~np.isnan(row)] for row in table]  # neither itself nor without a common module
    typical = np.array([np.quantile(row, _QUANTILE) if len(row) else 0.0 for row in known])
    middle = float(np.median(typical))
    expected = np.zeros_like(table)
    if middle > 0:
        expected = np.clip(np.outer(typical, typical) / middle, 0.0, 1.0)
    alike = 1.0 - table <= COPY_DISTANCE * (1.0 - expected)  # never where NaN
    _, label = connected_components(alike, directed=False)
    _, first_of = np.unique(label, return_index=True)
    first = first_of[label]
    return {k: members[first[i]] for i, k in enumerate(members) if first[i] != i}
