"""What all figures share: size, colours, lines with bands, labels at line ends, saving.

Colours are those of Okabe and Ito, which colour-blind people can tell apart. SVG files are the
same bytes for the same numbers (and the same matplotlib).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

WIDTH = 7.2  # inches: 691 pixels in a browser
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
GREY = "#b0b0b0"
STYLE: Any = {
    "svg.hashsalt": "clair", "svg.fonttype": "path", "font.size": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8, "axes.titlelocation": "left", "figure.facecolor": "white",
    "axes.grid": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False,
    "font.family": "DejaVu Sans", "figure.constrained_layout.use": True,
}  # fmt: skip

Drawn = Iterator[tuple[str, Figure]]  # file name without suffix, figure


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels at ``values``: in the same order, at least ``gap`` apart where there is
    room, and inside ``low`` to ``high``."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    groups: list[tuple[float, list[int]]] = []  # (middle, members), gap apart inside
    for i in order:
        middle, members = values[i], [i]
        while True:
            half = gap * (len(members) - 1) / 2
            middle = min(max(middle, low + half), high - half)
            if not groups:
                break
            before, others = groups[-1]
            if before + gap * (len(others) - 1) / 2 + gap <= middle - half + 1e-12:
                break
            groups.pop()
            total = len(others) + len(members)
            middle = (before * len(others) + middle * len(members)) / total
            members = others + members
        groups.append((middle, members))
    places = [0.0] * len(values)
    for middle, members in groups:
        for n, i in enumerate(members):
            places[i] = middle + gap * (n - (len(members) - 1) / 2)
    return places


def line(
    axes: Axes, x: Sequence[float], pairs: Sequence[Sequence[float]], look: tuple[Any, ...],
    least: float, most: float,
) -> None:  # fmt: skip
    """One line with its band, cut at ``least`` and ``most``; ``pairs`` are (mean, half width)."""
    _, colour, dashes, width = look
    means = [mean for mean, _ in pairs]
    low, high = ([min(max(m + s * h, least), most) for m, h in pairs] for s in (-1, 1))
    axes.plot(x, means, color=colour, linestyle=dashes, linewidth=width, solid_capstyle="round")
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str, float]], x: float) -> None:
    """Write each line's name right of ``x``: (value, text, colour, where the line ends)."""
    to, back = axes.transLimits, axes.transLimits.inverted()
    scale = axes.transScale
    values = [float(to.transform(scale.transform((1, end[0])))[1]) for end in ends]
    spots = spread([min(max(v, 0), 1) for v in values], 0.1, 0, 1)
    places = [scale.inverted().transform(back.transform((0, spot)))[1] for spot in spots]
    for place, (value, text, colour, end) in zip(places, ends, strict=True):
        colour = "#777777" if colour == GREY else colour
        axes.annotate(
            text, (end, value), (x * 1.09, place), color=colour, fontsize=7.5, va="center",
            annotation_clip=False, arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1,
                "shrinkB": 2, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def finish(table: Any, used: int, below: str) -> None:
    """Hide panels after the first ``used`` and name the horizontal axis under every column.

    ``table`` is the array of axes of `plt.subplots`, (lines, columns).
    """
    for place, axes in enumerate(table.flat):
        if place >= used:
            axes.set_visible(False)
        elif place + table.shape[1] >= used:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(below)


def mark(label: str, **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **look)


def save(figure: Figure, path: Path) -> None:
    """Write one figure, SVG without a date and without indentation, and forget it."""
    if path.suffix == ".svg":
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        lines = [line.strip() for line in text.getvalue().splitlines()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        figure.savefig(path, dpi=96)
    plt.close(figure)
