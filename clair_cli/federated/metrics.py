"""Metrics that clients send with their adapters: whose can be averaged, and their mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from clair_cli.federated.clients import finite, positive

T = TypeVar("T")


def alike(
    replies: Iterable[T], records_of: Callable[[T], Mapping[str, Mapping[str, Any]]], weight: str
) -> list[T]:
    """Those replies that have the metrics which most have, so that they can be averaged.

    Args:
        records_of: a reply's records of metrics by name, each a number or a list by its own name.
            Who has not one record is left out.
        weight: the name of the number that a reply is weighted by; who has none that is finite and
            above 0 is left out.

    >>> sent = [{"n": 1, "loss": 2.0}, {"n": 1}, {"n": 3, "loss": 1.0}, {"n": 0, "loss": 1.0}]
    >>> alike([{}, *({"m": one} for one in sent)], lambda reply: reply, "n")
    [{'m': {'n': 1, 'loss': 2.0}}, {'m': {'n': 3, 'loss': 1.0}}]
    """
    kinds = defaultdict[Any, list[T]](list)
    for reply in replies:
        records = records_of(reply)
        for record, own in records.items() if len(records) == 1 else ():
            if positive(own.get(weight)):
                lengths = ((name, len(v) if isinstance(v, list) else -1) for name, v in own.items())
                kinds[record, tuple(sorted(lengths))].append(reply)
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
        values = [finite(own.get(key)) for own, _ in each]
        parts = [value * share for value, (_, share) in zip(values, each, strict=True)
                 if value is not None]  # fmt: skip
        if len(parts) == len(each):
            found[str(key)] = math.fsum(parts)
    return found or None
