"""Metrics that clients send with their adapters: whose can be averaged, and their mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def alike(metrics: Sequence[Mapping[str, Any] | None], weight: str) -> list[int]:
    """Indices of those whose metrics have the names and lengths that most have.

    Args:
        metrics: each client's: a number or a list by name; None where it sent none, or several.
        weight: the name of the number that it is weighted by; who has none above 0 is left out.

    >>> alike([{"n": 1, "loss": 2.0}, {"n": 1}, None, {"n": 3, "loss": 1.0}, {"n": 0}], "n")
    [0, 3]
    """
    kinds = defaultdict[Any, list[int]](list)
    for index, own in enumerate(metrics):
        number = None if own is None else own.get(weight)
        if own is not None and number and not isinstance(number, list) and number > 0:
            lengths = ((name, len(v) if isinstance(v, list) else -1) for name, v in own.items())
            kinds[tuple(sorted(lengths))].append(index)
    return max(kinds.values(), key=len, default=[])


def mean_of(each: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float] | None:
    """The weighted means of the metrics that all have as finite numbers; None where there is none.

    Args:
        each: metrics and share, which sum to 1.

    >>> mean_of([({"loss": 1.0, "note": "x"}, 0.5), ({"loss": 2.0}, 0.5)])
    {'loss': 1.5}
    """
    found = {}
    for key in each[0][0] if each else ():
        values = [(own.get(key), share) for own, share in each]
        if all(isinstance(v, (int, float)) and math.isfinite(v) for v, _ in values):
            found[str(key)] = math.fsum(v * share for v, share in values)  # type: ignore[operator]
    return found or None
