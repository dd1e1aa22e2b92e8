"""Where marks stand in the drawings, in percent of their width and height."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clair_cli.pictures.errors import losses
from clair_cli.pictures.points import Evidence, Mark, Place, places
from clair_cli.pictures.spectrum import spectrum
from clair_cli.report.model import VERDICTS, Report
from clair_cli.text import printable

_FEW = 16  # clients that all have their names on the map
_MARGIN = 1.25  # of the map, over what is drawn
_APART = (14.0, 4.0)  # percent between two names on the map


@dataclass(frozen=True)
class EvidenceRow:
    """Where one client's mark and its interval stand."""

    mark: Mark
    at: float
    start: float
    length: float


@dataclass(frozen=True)
class EvidenceChart:
    """All intervals on one scale from `least` to `most`."""

    rows: tuple[EvidenceRow, ...]
    line: float
    width: float
    line_at: float
    ticks: tuple[tuple[float, float], ...]


def evidence_chart(found: Evidence) -> EvidenceChart:
    """The intervals on a scale that has 0, the line and 1 on it. Very wide ones are cut."""
    least = min(-0.1, max(-1.5, min(mark.low for mark in found.marks)))
    most = max(1.1, min(2.5, max(mark.high for mark in found.marks)))

    def at(value: float) -> float:
        return round(100 * (min(most, max(least, value)) - least) / (most - least), 2)

    rows = tuple(
        EvidenceRow(m, at(m.loading), at(m.low), round(at(m.high) - at(m.low), 2))
        for m in found.marks
    )
    ticks = tuple((tick, at(tick)) for tick in (-1.0, 0.0, 1.0, 2.0) if least <= tick <= most)
    return EvidenceChart(rows, found.line, found.width, at(found.line), ticks)


@dataclass(frozen=True)
class MapMark:
    """One client on the map; `label`: whether its name is drawn."""

    place: Place
    left: float
    top: float
    label: bool


@dataclass(frozen=True)
class MapChart:
    """The map; the origin's place in percent, and the strongest rows of its table."""

    marks: tuple[MapMark, ...]
    left: float
    top: float
    rows: tuple[MapMark, ...]


def map_chart(report: Report) -> MapChart | None:
    """The map of the clients, one scale on both axes; None where the report has none."""
    found = places(report)
    if not found:
        return None
    xs, ys = (0.0, *(p.x for p in found)), (0.0, *(p.y for p in found))
    middle_x, middle_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    half = _MARGIN * max(max(xs) - min(xs), max(ys) - min(ys)) / 2 or 1.0

    def across(x: float) -> float:
        return round(50 + 50 * (x - middle_x) / half, 2)

    def down(y: float) -> float:
        return round(50 - 50 * (y - middle_y) / half, 2)

    labelled = _labelled(found, across, down)
    marks = tuple(MapMark(p, across(p.x), down(p.y), p in labelled) for p in found)
    return MapChart(marks, across(0.0), down(0.0), tuple(reversed(marks)))


def _labelled(
    found: tuple[Place, ...], across: Callable[[float], float], down: Callable[[float], float]
) -> set[Place]:
    """Whose names are drawn: those with a finding first, none over another."""
    chosen = list[Place]()
    for place in sorted(found, key=lambda p: (VERDICTS.index(p.verdict), p.name)):
        if place.verdict == "benign" and len(found) > _FEW:
            break
        if all(
            abs(across(place.x) - across(p.x)) > _APART[0]
            or abs(down(place.y) - down(p.y)) > _APART[1]
            for p in chosen
        ):
            chosen.append(place)
    return set(chosen)


@dataclass(frozen=True)
class LossChart:
    """Losses by rank.

    Attributes:
        ranks: (rank, percent from the left).
        total: points of the whole's line, "x,y x,y"; of each module in `modules`.
        marks: (rank, error, left, top) of the whole.
        most: the error at the top. rank, at: the rank written and where it stands, or None.
        rows: modules with the largest loss at the rank written: name and errors by rank.
    """

    ranks: tuple[tuple[int, float], ...]
    total: str
    modules: tuple[tuple[str, str], ...]
    marks: tuple[tuple[int, float, float, float], ...]
    most: float
    rank: int
    at: float | None
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def loss_chart(report: Report, n_rows: int = 20) -> LossChart | None:
    """The losses of the merge by rank; None if nothing was merged."""
    found = losses(report)
    if found is None:
        return None
    curves = [found.total, *found.modules.values()]
    most = max((e for curve in curves for e in curve if e is not None), default=0.0) or 1.0
    step = 90 / max(1, len(found.ranks) - 1)
    lefts = [round(5 + i * step, 2) for i in range(len(found.ranks))]

    def top(error: float) -> float:
        return round(95 - 88 * error / most, 2)

    def points(curve: tuple[float | None, ...]) -> str:
        pairs = zip(lefts, curve, strict=True)
        return " ".join(f"{x:g},{top(e):g}" for x, e in pairs if e is not None)

    written = found.ranks.index(found.rank) if found.rank in found.ranks else None

    def loss(item: tuple[str, tuple[float | None, ...]]) -> float:
        error = item[1][0 if written is None else written]
        return -1.0 if error is None else error

    rows = sorted(found.modules.items(), key=loss, reverse=True)[:n_rows]
    return LossChart(
        tuple(zip(found.ranks, lefts, strict=True)),
        points(found.total),
        tuple((printable(name), points(curve)) for name, curve in found.modules.items()),
        tuple(
            (rank, error, left, top(error))
            for rank, error, left in zip(found.ranks, found.total, lefts, strict=True)
            if error is not None
        ),
        most,
        found.rank,
        None if written is None else lefts[written],
        tuple((printable(name), curve) for name, curve in rows),
    )


@dataclass(frozen=True)
class SpectrumChart:
    """Eigenvalues as bars.

    Attributes:
        bars: (value, left, top) of each; a bar is `width` wide and ends at the bottom line.
        chance: the value that chance alone reaches, and its height from above, or None.
        most: the value at the top. left_out: how many smaller values are not drawn.
    """

    bars: tuple[tuple[float, float, float], ...]
    width: float
    chance: tuple[float, float] | None
    most: float
    left_out: int


def spectrum_chart(report: Report) -> SpectrumChart | None:
    """The spectrum as bars; None where the report has none."""
    found = spectrum(report)
    if found is None:
        return None
    most = max(*found.values, found.chance or 0.0, 1.0)
    step = 92 / len(found.values)

    def top(value: float) -> float:
        return round(95 - 88 * max(0.0, value) / most, 2)

    bars = tuple(
        (value, round(4 + i * step, 2), top(value)) for i, value in enumerate(found.values)
    )
    chance = None if found.chance is None else (found.chance, top(found.chance))
    return SpectrumChart(bars, round(0.7 * step, 2), chance, most, found.count - len(found.values))
