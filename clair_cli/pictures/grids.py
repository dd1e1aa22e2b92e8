"""Heat maps: clients by clients, and clients by modules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from clair_cli.pictures.numbers import LEAST, held
from clair_cli.pictures.order import by_group, groups_of, natural
from clair_cli.report.model import ClientReport, ModuleScores, Report

# Of a module's share nothing can be told where typical members are less than this many deviations
# by chance above it.
_TOLD = 2.0
_FEWEST = 3  # members, for something typical
# Values further out than this share of all that differ from the middle have one colour.
_SHOWN = 0.95

Row = tuple[float | None, ...]


@dataclass(frozen=True)
class Grid:
    """A heat map.

    Attributes:
        rows, columns: names, in the order shown.
        values: by row and column; None where there is none.
        middle: the value that is ordinary, without a colour.
        bound: distance from `middle` from which on colours stay the same; above 0.
        ends: numbers of rows after which a group ends; clients in none count as one.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Row, ...]
    middle: float
    bound: float
    ends: tuple[int, ...] = ()


def similarity_grid(report: Report) -> Grid | None:
    """Similarity of each pair of clients, in the order of groups; None with fewer than two."""
    cohort = report.cohort
    place = {name: i for i, name in enumerate(cohort.names)}
    clients = by_group(report)
    square = all(len(row) == len(place) for row in cohort.similarity)
    if len(clients) < 2 or len(cohort.similarity) != len(cohort.names) or not square:
        return None
    order = [place[client.name] for client in clients]
    values = tuple(
        tuple(None if j == k else _held(cohort.similarity[j][k]) for k in order) for j in order
    )
    names = tuple(client.name for client in clients)
    return Grid(names, names, values, 0.0, _bound(values, 0.0), _ends(report, names))


def share_grid(report: Report) -> Grid | None:
    """How much of what typical members share each client has in each module: 1 for a member, 0 for
    an unrelated client; None where chance alone could be as much. None without a group."""
    clients, modules = _rows_and_columns(report)
    typical = {name: _typical(report, name) for name in modules}
    values = tuple(
        tuple(_share(client.modules.get(name), typical[name]) for name in modules)
        for client in clients
    )
    return _grid(report, clients, modules, values, 1.0)


def size_grid(report: Report) -> Grid | None:
    """How large each client's update is in each module beside the clients' median there, as a
    power of two: 0 for the median, 1 for twice as large."""
    clients, modules = _rows_and_columns(report)
    middle = {name: _median_norm(clients, name) for name in modules}
    values = tuple(
        tuple(_log_ratio(client.modules.get(name), middle[name]) for name in modules)
        for client in clients
    )
    return _grid(report, clients, modules, values, 0.0)


def _grid(
    report: Report,
    clients: Sequence[ClientReport],
    modules: Sequence[str],
    values: tuple[Row, ...],
    middle: float,
) -> Grid | None:
    if not any(value is not None for row in values for value in row):
        return None
    names = tuple(client.name for client in clients)
    bound = 1.0 if middle else max(1.0, _bound(values, middle))
    return Grid(names, tuple(modules), values, middle, bound, _ends(report, names))


def _rows_and_columns(report: Report) -> tuple[list[ClientReport], list[str]]:
    return by_group(report), sorted((module.name for module in report.modules), key=natural)


def _typical(report: Report, module: str) -> float | None:
    """Median similarity of the members of the cohort's group in a module."""
    group = next((g for g in report.cohort.groups if g.role == "collaborative"), None)
    members = set(group.members) if group else set()
    scores = [c.modules[module] for c in report.clients
              if c.name in members and module in c.modules]  # fmt: skip
    found = [s.similarity for s in scores if s.similarity is not None]
    return median(found) if len(found) >= _FEWEST else None


def _share(scores: ModuleScores | None, typical: float | None) -> float | None:
    if scores is None or scores.similarity is None or typical is None or scores.chance is None:
        return None
    if typical <= max(_TOLD * scores.chance, LEAST):
        return None
    return held(scores.similarity / typical)


def _median_norm(clients: Sequence[ClientReport], module: str) -> float | None:
    norms = [c.modules[module].norm for c in clients if module in c.modules]
    norms = [norm for norm in norms if norm > 0]
    return median(norms) if norms else None


def _log_ratio(scores: ModuleScores | None, middle: float | None) -> float | None:
    if scores is None or middle is None or not scores.norm > 0 or not middle > 0:
        return None
    return math.log2(scores.norm) - math.log2(middle)


def _held(value: float | None) -> float | None:
    return None if value is None else held(value)


def _bound(values: Sequence[Row], middle: float) -> float:
    """A distance from the middle that most values stay within."""
    away = sorted(abs(v - middle) for row in values for v in row if v is not None)
    bound = away[min(len(away) - 1, int(_SHOWN * len(away)))] if away else 0.0
    return bound if bound > LEAST else 1.0


def _ends(report: Report, names: Sequence[str]) -> tuple[int, ...]:
    """Where groups end; clients in none are one block."""
    groups = groups_of(report)
    sizes = Counter(groups.values())
    block = [groups[n] if n in groups and sizes[groups[n]] > 1 else -1 for n in names]
    return tuple(i for i in range(1, len(names)) if block[i - 1] != block[i])
