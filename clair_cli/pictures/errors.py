"""The loss of the merge by rank, in all and in each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clair_cli.pictures.numbers import held
from clair_cli.pictures.order import natural
from clair_cli.report.model import Report


@dataclass(frozen=True)
class Losses:
    """Errors of the merge: distance to the exact mean over its norm.

    Attributes:
        ranks: ascending.
        total: at each rank; None where it is not known.
        modules: the same by module, in natural order.
        rank: the rank written. full_rank: that which loses nothing.
    """

    ranks: tuple[int, ...]
    total: tuple[float | None, ...]
    modules: Mapping[str, tuple[float | None, ...]]
    rank: int
    full_rank: int


def losses(report: Report) -> Losses | None:
    """What each rank loses; None if nothing was merged."""
    merged = report.merged
    if merged is None or not merged.error_by_rank:
        return None
    ranks = sorted(int(rank) for rank in merged.error_by_rank)

    def at(errors: Mapping[str, float | None]) -> tuple[float | None, ...]:
        found = (errors.get(str(rank)) for rank in ranks)
        return tuple(None if error is None else held(error) for error in found)

    modules = {
        name: at(merged.module_error_by_rank[name])
        for name in sorted(merged.module_error_by_rank, key=natural)
    }
    return Losses(tuple(ranks), at(merged.error_by_rank), modules, merged.rank, merged.full_rank)
