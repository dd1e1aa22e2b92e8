"""What several rounds show of one client, added up.

The loading of round t is l_t = l + e_t, with a standard error s_t, and the errors of two rounds of
one client have the correlation ROUNDS_ALIKE, since its data, and what is wrong with them, are in
all of its rounds. The loading over the rounds is the mean with the weights that make its variance
the least, none of them negative. With s_t at least the last round's s (so no earlier round counts
for more than the last one) that variance is

    (1 - r) sum w_t^2 s_t^2 + r (sum w_t s_t)^2  >=  r s^2,    r = ROUNDS_ALIKE,  sum w_t = 1:

any number of rounds counts as fewer than 1 / r = 3 independent ones like the last, n of them with
one error as n / (1 + (n - 1) r).

The variance: ours; the weights: those of generalised least squares (A. C. Aitken, "On least squares
and linear combinations of observations", Proceedings of the Royal Society of Edinburgh 55, 1935).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clair_cli.maths.judge.thresholds import LINE

# Correlation of what two rounds show of one client: the same data and the same faults are in all of
# them. Any number of rounds then counts as fewer than 1 / ROUNDS_ALIKE independent ones.
ROUNDS_ALIKE = 1 / 3
# Chance that a client's loading of this round is said to be too low, or too high, for what earlier
# rounds saw of it, if it is the same in all of them: these then count for nothing.
TURNED_P = 0.05

# Loadings and errors beyond these are no evidence: a report may hold any number.
_LARGEST, _LEAST = 1e6, 1e-6
_ACCUSED = ("contaminated", "minority")


@dataclass(frozen=True)
class Seen:
    """What one round showed of one client.

    Attributes:
        loading: its share of what the cohort has in common, over the typical member's.
        se: standard error of `loading`, above 0.
        verdict: that its numbers gave it.
    """

    loading: float
    se: float
    verdict: str

    @property
    def is_evidence(self) -> bool:
        """Whether the numbers can be counted with; False for NaN."""
        return abs(self.loading) <= _LARGEST and _LEAST <= self.se <= _LARGEST


@dataclass(frozen=True)
class OverRounds:
    """What a client's rounds show together.

    Attributes:
        rounds: number of earlier rounds.
        loading, se: over these and the last one.
        p_line: probability of a loading as low for a client that has just LINE of the typical one.
        power: probability that it would be found below LINE if it shared nothing in any round.
        agrees: whether the earlier rounds say what the last one says; if not, they count for
            nothing.
        alone: confidence of the last round alone, "clear", "likely" or "open".
    """

    rounds: int
    loading: float
    se: float
    p_line: float
    power: float
    agrees: bool
    alone: str


def mean_over_rounds(loadings: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Loading over some rounds of one client, and its standard error; see the top of this file.

    Args:
        loadings, errors: of each round, in any order; errors above 0.

    >>> [round(x, 3) for x in mean_over_rounds([1.0, 0.8], [0.1, 0.1])]  # 1.5 rounds
    [0.9, 0.082]
    """
    roots = sorted(((1.0 / s, x) for x, s in zip(loadings, errors, strict=True)), reverse=True)
    count, total, part = 0, 0.0, 0.0
    for root, _ in roots:  # the most precise first; a weight below zero ends it
        more = ROUNDS_ALIKE * (total + root) / (1.0 + count * ROUNDS_ALIKE)
        if not root > more:
            break
        count, total, part = count + 1, total + root, more
    used = roots[:count]
    scale = math.fsum(root * (root - part) for root, _ in used)
    loading = math.fsum(root * (root - part) * x for root, x in used) / scale
    return loading, math.sqrt((1.0 - ROUNDS_ALIKE) / scale)


def over_rounds(
    last: Seen, earlier: Sequence[Seen], *, bar: float, degrees: float, alone: str
) -> OverRounds | None:
    """Add up what the rounds show of one client; None where there is nothing to add up.

    Args:
        last: of the round that is judged now.
        earlier: of earlier rounds, in any order.
        bar, degrees: of `Loadings`, in the last round.
        alone: see `OverRounds`.
    """
    from scipy.special import ndtr, stdtr, stdtrit  # a fifth of a second

    before = [seen for seen in earlier if seen.is_evidence]
    if not before or not last.is_evidence:
        return None
    usual, error = mean_over_rounds([s.loading for s in before], [s.se for s in before])
    most = float(stdtrit(degrees, 1.0 - TURNED_P)) * math.hypot(last.se, error)
    same = abs(last.loading - usual) <= most
    turned = last.verdict not in _ACCUSED and any(s.verdict in _ACCUSED for s in before)
    loading, se = mean_over_rounds(
        [last.loading, *(s.loading for s in before)],
        [last.se, *(max(s.se, last.se) for s in before)],
    )
    return OverRounds(
        len(before), loading, se,
        float(stdtr(degrees, (loading - LINE) / se)), float(ndtr(LINE / se - bar)),
        same and not turned, alone,
    )  # fmt: skip
