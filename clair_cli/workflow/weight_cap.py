"""No client has more than a given share of the merge; and how the weights are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clair_cli.errors import UsageError
from clair_cli.report.cohort import WeightSpread
from clair_cli.workflow.judge import JudgedRound

# Share by which numbers may differ that are the same but for rounding: 0.333333333 is a third.
_ROUNDING = 1e-9


class CapTooSmall(UsageError):
    """The largest weight is below 1 / number of clients, so that one of them must have more."""


def cap_weights(judged: JudgedRound, most: float | None, n_more: int = 0) -> JudgedRound:
    """The round with no weight above `most`; the excess is spread over the others.

    Args:
        most: largest share of one client, above 0 and at most 1; None for any.
        n_more: clients who get a weight later; until then equal weights may be above `most`.

    Raises:
        CapTooSmall: so few clients are merged that one of them must have more.
    """
    n = len(judged.merged)
    if most is None or not n:
        return judged
    check_most(most, n + n_more)
    if max(judged.weights) <= most:
        return judged
    weights = capped(judged.weights, most)
    return replace(judged, weights=weights, capped=_with_largest(weights))


def check_most(most: float | None, n: int, are: str = "merged") -> None:
    """Check that n clients can all have a weight of at most `most`.

    Args:
        are: what is said of the clients: "merged", or "given" before anybody is judged.

    Raises:
        CapTooSmall: one of them must have more.
    """
    if most is None or not n or most >= (1.0 - _ROUNDING) / n:
        return
    clients = "1 client is" if n == 1 else f"{n:,} clients are"
    raise CapTooSmall(
        f"max_weight is {most:g}, and {clients} {are}, so that one of them has at least "
        f"{1.0 / n:.3g}",
        hint=f"give at least 1 / {n}, or leave --max-weight out",
    )


def _with_largest(weights: Sequence[float]) -> tuple[int, ...]:
    """The clients who have the largest weight."""
    least = max(weights) * (1.0 - _ROUNDING)
    return tuple(k for k, w in enumerate(weights) if w >= least)


def capped(weights: Sequence[float], most: float) -> tuple[float, ...]:
    """Weights of at most `most`: what is above it goes to the others, in proportion to theirs.

    Args:
        weights: at least 0, summing to 1. Who has 0 gets nothing.
        most: above 0; equal weights where it is too small for the number of positive ones.

    >>> capped([0.5, 0.25, 0.125, 0.125, 0.0], 0.375)
    (0.375, 0.3125, 0.15625, 0.15625, 0.0)
    """
    merged = [k for k, w in enumerate(weights) if w > 0]
    most = max(most, 1.0 / max(1, len(merged)))
    found, free = list(weights), merged
    while any(found[k] > most for k in free):
        for k in free:
            found[k] = min(found[k], most)
        free = [k for k in free if found[k] < most]
        held = most * (len(merged) - len(free))
        total = math.fsum(found[k] for k in free)
        for k in free:
            found[k] *= (1.0 - held) / total
    return tuple(found)


def spread_of(judged: JudgedRound) -> WeightSpread | None:
    """How the weights are spread; None if nobody has one."""
    if not judged.merged:
        return None
    names, largest = judged.round.names, _with_largest(judged.weights)
    return WeightSpread(
        max(judged.weights),
        names[largest[0]] if len(largest) == 1 else None,
        1.0 / math.fsum(w * w for w in judged.weights),
        tuple(sorted(names[k] for k in judged.capped)),
    )
