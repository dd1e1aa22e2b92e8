"""Ties: two clients far more, or far less, alike than what each shares with the others explains.

One of the two can bring that about alone, with a copy of the other's update mixed into its own, or
taken from it. So a tie is no evidence against either: their pair is not counted where loadings are
measured, and those who are not found out by what they share with everybody else have one vote.

The test: ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from clair_cli.maths.judge.factor import PRIOR
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.thresholds import MINORITY_P, OWN_SHARE

# Fewest clients: of four, two others say what each of a pair shares with them.
_LEAST_CLIENTS = 5

Tie = tuple[int, int]


def without(pairs: Pairs, ties: Collection[Tie]) -> Pairs:
    """The pairs of which some are not known."""
    value, known = pairs.value.clone(), pairs.known.clone()
    for j, k in ties:
        for table in (value, known):
            table[j, k] = table[k, j] = 0.0
    return replace(pairs, value=value, known=known)


def find_tie(pairs: Pairs, clients: Sequence[int], sign: int) -> Tie | None:
    """The clearest tie among some clients, or None.

    With one thing shared, the similarity of two is the product of what each has of it, and that is
    seen in each one's median similarity: no single pair moves it far. How far the pair is from that
    product is a Student's t in deviations of all other pairs. It counts where that is OWN_SHARE of
    what two typical clients share or more, and the tail times the number of pairs below MINORITY_P.

    Args:
        pairs: of all clients.
        clients: indices of those to compare, without a minority.
        sign: 1 for two that are too much alike, -1 for two that are too little.
    """
    from scipy.special import stdtr  # Student's t; a fifth of a second

    chosen = torch.tensor(sorted(clients))
    if len(chosen) < _LEAST_CLIENTS:
        return None
    among = pairs.of(chosen)
    middle = torch.where(among.known > 0, among.value, torch.nan).nanquantile(0.5, dim=1)
    typical = float(middle.nanmedian())
    if not typical > 0.0:
        return None
    expected = torch.nan_to_num(middle[:, None] * middle / typical)
    apart = (among.value - expected) * among.known
    place = int((sign * apart).argmax())
    j, k = divmod(place, len(chosen))
    far = sign * float(apart[j, k])
    degrees = max(1.0, float(among.known.sum()) / 2 - 1 - len(chosen)) + PRIOR
    variance = (float(apart.square().sum()) / 2 - far**2 + PRIOR * among.noise) / degrees
    if not (far >= OWN_SHARE * typical and variance > 0.0):
        return None
    n_pairs = len(chosen) * (len(chosen) - 1) / 2
    if not n_pairs * float(stdtr(degrees, -far / variance**0.5)) < MINORITY_P:
        return None
    return tuple(sorted((int(chosen[j]), int(chosen[k]))))  # type: ignore[return-value]


def answerable(ties: Collection[Tie], members: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Whom each client shares a vote with: those it is tied to, if they have no more ties than it.

    One client that is tied to several who are not tied to each other has mixed them: they
    keep their votes.

    Args:
        members: ties with a client that is none of these do not count.
    """
    held = [(j, k) for j, k in ties if j in members and k in members]
    count = Counter(k for pair in held for k in pair)
    found: dict[int, tuple[int, ...]] = {}
    for k in sorted(count):
        tied = sorted({j for pair in held if k in pair for j in pair} - {k})
        if any(count[j] <= count[k] for j in tied):
            found[k] = tuple(j for j in tied if count[j] <= count[k])
    return found
