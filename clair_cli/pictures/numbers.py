"""Numbers of a stranger's report, held inside what can be drawn."""

from __future__ import annotations

MOST = 1e9
LEAST = 1e-9
"""Of a range that is drawn."""


def held(value: float) -> float:
    """The number, no larger than MOST either way: a product of two drawn numbers is finite.

    >>> held(0.5), held(-1e308), held(float("inf"))
    (0.5, -1000000000.0, 1000000000.0)
    """
    return min(MOST, max(-MOST, value))
