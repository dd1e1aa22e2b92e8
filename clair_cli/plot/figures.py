"""Report -> SVG and PNG of each picture: the same report gives the same bytes.

Only what the report says is drawn, by the data of `clair_cli.pictures`, as on the page. The user's
own settings of matplotlib do not count, and `$` in a name is no formula.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from clair_cli.extras import check_installed
from clair_cli.pictures.errors import losses
from clair_cli.pictures.grids import Grid, share_grid, similarity_grid, size_grid
from clair_cli.pictures.order import short_names
from clair_cli.pictures.points import evidence, places
from clair_cli.pictures.spectrum import spectrum
from clair_cli.report.model import VERDICTS, Report
from clair_cli.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
# As on the page: colours that colour-blind people can tell, and a shape for each verdict.
_LOOK = {
    "contaminated": ("#c9500a", "X"),
    "minority": ("#b0568e", "D"),
    "suspicious": ("#d59300", "^"),
    "duplicate": ("#3f9bd1", "s"),
    "rejected": ("#6e7781", "_"),
    "undetermined": ("#0a58ca", "P"),
    "benign": ("#008a63", "o"),
}
_LOW, _MID, _HIGH, _INK, _SOFT = "#b35806", "#f4f4f2", "#1f5fa8", "#1b1f24", "#8a929b"
_STYLE: Mapping[str, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "clair",
    "text.parse_math": False,
}
_MOST_NAMES = 60  # on an axis
_FEW = 16  # clients that all have their names on the map
_LONGEST = 32  # characters of a name
_WIDTH = 6.5  # inches: a page's text


def check_available() -> None:
    """Raise UsageError if the library is not installed; to be called before any work."""
    check_installed("a picture", "matplotlib", "plot")


def render(report: Report) -> dict[str, bytes]:
    """All figures that the report has data for, by file name, as in `similarity.svg`; needs the
    extra plot."""
    import matplotlib as mpl

    found = {}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
        mpl.rcdefaults()
        ours: Any = mpl.rcParams  # its type has a list of all names there are
        ours.update(_STYLE)
        for name, draw in _FIGURES.items():
            figure = draw(report)
            for format_ in FORMATS if figure is not None else ():
                found[f"{name}.{format_}"] = _saved(figure, format_)
    return found


def _saved(figure: Any, format_: str) -> bytes:
    into = BytesIO()
    nothing = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    figure.savefig(into, format=format_, metadata=nothing[format_])
    return into.getvalue()


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\u2026"


def _similarity(report: Report) -> Figure | None:
    return _heat_map(similarity_grid(report), "similarity above that of unrelated clients")


def _share(report: Report) -> Figure | None:
    return _heat_map(share_grid(report), "share of what typical members have in common")


def _size(report: Report) -> Figure | None:
    return _heat_map(size_grid(report), "size over the median, as a power of two")


def _heat_map(grid: Grid | None, label: str) -> Figure | None:
    if grid is None:
        return None
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = len(grid.rows), len(grid.columns)
    cell = min(0.16, _WIDTH / columns)
    figure, axes = _axes(max(2.5, cell * columns + 1), max(1.2, min(cell, 0.16) * rows + 0.5))
    values = [[math.nan if v is None else v for v in row] for row in grid.values]
    image = axes.imshow(
        values,
        cmap=LinearSegmentedColormap.from_list("clair", [_LOW, _MID, _HIGH]),
        vmin=grid.middle - grid.bound,
        vmax=grid.middle + grid.bound,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor("white")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _names(axes.set_yticks, grid.rows)
    if grid.columns != grid.rows:
        _names(axes.set_xticks, tuple(short_names(grid.columns)), rotation=90)
        axes.xaxis.tick_top()
    else:
        axes.set_xticks([])
    for end in grid.ends:
        axes.axhline(end - 0.5, color=_INK, linewidth=0.8)
        if grid.columns == grid.rows:
            axes.axvline(end - 0.5, color=_INK, linewidth=0.8)
    figure.colorbar(image, ax=axes, label=label, extend="both", shrink=0.9, aspect=30)
    return figure


def _names(set_ticks: Callable[..., object], names: tuple[str, ...], **look: Any) -> None:
    if len(names) > _MOST_NAMES:
        set_ticks([])
    else:
        set_ticks(range(len(names)), [_short(name) for name in names], **look)


def _evidence(report: Report) -> Figure | None:
    found = evidence(report)
    if found is None:
        return None
    figure, axes = _axes(_WIDTH * 0.75, max(1.2, 0.16 * len(found.marks) + 0.5))
    for place, mark in enumerate(found.marks):
        colour, shape = _LOOK[mark.verdict]
        axes.plot([mark.low, mark.high], [place, place], color=colour, linewidth=2, alpha=0.6)
        axes.plot(mark.loading, place, shape, color=colour, markersize=4.5)
    axes.axvline(found.line, color=_INK, linestyle="--", linewidth=0.9)
    _names(axes.set_yticks, tuple(mark.name for mark in found.marks))
    axes.set_ylim(len(found.marks) - 0.4, -0.6)
    axes.set_xlabel("share of what two of the others have in common, with its interval")
    _legend(axes, {mark.verdict for mark in found.marks})
    return figure


def _map(report: Report) -> Figure | None:
    found = places(report)
    if not found:
        return None
    figure, axes = _axes(4.5, 4.5)
    for place in found:
        colour, shape = _LOOK[place.verdict]
        axes.plot(place.x, place.y, shape, color=colour, markersize=5, markeredgecolor="white",
                  markeredgewidth=0.4)  # fmt: skip
        if place.verdict != "benign" or len(found) <= _FEW:
            axes.annotate(
                _short(place.name), (place.x, place.y), (5, 0), textcoords="offset points",
                va="center", fontsize=6,
            )  # fmt: skip
    axes.plot(0, 0, "+", color=_INK, markersize=9)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.15)
    axes.set_xlabel("first direction (the cross shares nothing with anybody)")
    axes.set_ylabel("second direction")
    _legend(axes, {place.verdict for place in found})
    return figure


def _legend(axes: Axes, verdicts: set[str]) -> None:
    for verdict in VERDICTS:
        if verdict in verdicts:
            colour, shape = _LOOK[verdict]
            axes.plot([], [], shape, color=colour, markersize=4.5, label=verdict)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _losses(report: Report) -> Figure | None:
    found = losses(report)
    if found is None:
        return None
    figure, axes = _axes(_WIDTH * 0.75, 3)
    where = range(len(found.ranks))

    def line(curve: tuple[float | None, ...], **look: Any) -> None:
        axes.plot(where, [math.nan if e is None else 100 * e for e in curve], **look)

    for curve in found.modules.values():
        line(curve, color=_SOFT, linewidth=0.5, alpha=0.5)
    line(found.total, color=_HIGH, linewidth=2, marker="o", markersize=4, label="the whole merge")
    axes.plot([], [], color=_SOFT, linewidth=0.5, label="one module")
    if found.rank in found.ranks:
        axes.axvline(
            found.ranks.index(found.rank), color=_INK, linestyle="--", linewidth=0.9,
            label="as written",
        )  # fmt: skip
    axes.set_xticks(where, [str(rank) for rank in found.ranks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank")
    axes.set_ylabel("loss, in % of the exact mean")
    axes.legend(frameon=False)
    return figure


def _spectrum(report: Report) -> Figure | None:
    found = spectrum(report)
    if found is None:
        return None
    figure, axes = _axes(_WIDTH * 0.75, 2.5)
    axes.bar(range(1, len(found.values) + 1), found.values, color=_HIGH)
    if found.chance is not None:
        axes.axhline(
            found.chance, color=_INK, linestyle="--", linewidth=0.9, label="reached by chance"
        )
        axes.legend(frameon=False)
    axes.set_xlabel("eigenvalues of the similarities, the largest first")
    axes.set_ylabel("size")
    return figure


_FIGURES: Mapping[str, Callable[[Report], Any]] = {
    "evidence": _evidence,
    "similarity": _similarity,
    "share": _share,
    "size": _size,
    "map": _map,
    "spectrum": _spectrum,
    "losses": _losses,
}
