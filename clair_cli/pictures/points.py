"""Pictures with one mark a client: the evidence, and the map."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.pictures.numbers import held
from clair_cli.pictures.order import by_verdict
from clair_cli.report.model import Report


@dataclass(frozen=True)
class Mark:
    """One client's loading.

    Attributes:
        low, high: the interval that must lie whole below the line for the client to be
            contaminated for it.
        p_honest: probability that an honest client looks at least as unlike, or None.
    """

    name: str
    verdict: str
    loading: float
    low: float
    high: float
    p_honest: float | None


@dataclass(frozen=True)
class Evidence:
    """All clients' loadings, and the line."""

    marks: tuple[Mark, ...]
    line: float
    width: float


def evidence(report: Report) -> Evidence | None:
    """The loadings with their intervals; None where there is no group, or in reports of older
    versions, which do not have the line."""
    line, width = report.cohort.line, report.cohort.line_width
    if line is None or width is None:
        return None
    marks = []
    for client in by_verdict(report.clients):
        loading, se = client.scores.loading, client.scores.loading_se
        if loading is not None and se is not None:
            away = held(width) * held(se)
            low, high = held(held(loading) - away), held(held(loading) + away)
            marks.append(
                Mark(client.name, client.verdict, held(loading), low, high, client.p_honest)
            )
    return Evidence(tuple(marks), held(line), held(width)) if marks else None


@dataclass(frozen=True)
class Place:
    """One client on the map; x and y as in the report."""

    name: str
    verdict: str
    x: float
    y: float


def places(report: Report) -> tuple[Place, ...]:
    """The map of the clients, benign ones first so that the others are drawn over them; () where
    the report has none."""
    cohort = report.cohort
    if len(cohort.coordinates) != len(cohort.names):
        return ()
    where = dict(zip(cohort.names, cohort.coordinates, strict=True))
    shown = [c for c in by_verdict(report.clients) if c.name in where and c.verdict != "rejected"]
    return tuple(Place(c.name, c.verdict, *map(held, where[c.name])) for c in reversed(shown))
