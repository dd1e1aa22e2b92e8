"""Figure of `attack_matrix.py`: how far the worst attacks pull the merge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.figures.style import BLUE, GREEN, ORANGE, WIDTH, Drawn, mark

SHOWN = 25
LEAST, MOST = 0.01, 10.0
TICKS = (0.03, 0.1, 0.3, 1, 3)
# number in a row: (label, colour, marker, size, fill), such that equal numbers can all be seen
RULES: Mapping[str, tuple[Any, ...]] = {
    "mean": ("plain mean", ORANGE, "s", 9.0, "none"),
    "best": ("best peer of each cohort", GREEN, "D", 6.0, "none"),
    "error": ("clair merge", BLUE, "o", 4.5, BLUE),
}

Row = Mapping[str, Any]


def merged(row: Row) -> bool:
    """Whether any cohort of this attack was judged, and so merged."""
    return bool(row["undetermined"] < row["cells"])


def size(row: Row, name: str) -> float:
    """Largest distance, relative; infinite where a rule gave no number."""
    return math.inf if row[name] is None else float(row[name])


def worst(rows: Sequence[Row], count: int = SHOWN) -> list[Row]:
    """The ``count`` rows with the largest distances of clair, largest first."""
    order = sorted(
        (row for row in rows if merged(row)),
        key=lambda row: (-size(row, "error"), -size(row, "mean"), row["attack"]),
    )
    return order[:count]


def described(row: Row) -> str:
    """Name of the attack, with the number of cohorts that were not judged."""
    undetermined = row["undetermined"]
    extra = f" ({undetermined}/{row['cells']} undetermined)" if undetermined else ""
    return f"{row['attack']}{extra}"


def marker(colour: str, shape: str, width: float, fill: str) -> dict[str, Any]:
    """Options of a dot."""
    return {
        "marker": shape, "markersize": width, "markeredgecolor": colour, "markerfacecolor": fill,
        "markeredgewidth": 1.4,
    }  # fmt: skip


def matrix_figure(rows: Sequence[Row]) -> Figure:
    """A line per attack, the worst on top, a dot per rule; clipped at both ends."""
    shown = worst(rows)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.2 + 0.2 * len(shown)))
    for place, row in enumerate(shown):
        for name, (_, *look) in RULES.items():
            value = min(max(size(row, name), LEAST), MOST)
            axes.plot(value, place, linestyle="", clip_on=False, zorder=3, **marker(*look))
    axes.set_xscale("log")
    axes.set_xlim(LEAST, MOST)
    inner = [f"{x:g}" for x in TICKS]
    axes.set_xticks((LEAST, *TICKS, MOST), [f"≤ {LEAST:g}", *inner, f"≥ {MOST:g}"])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), [described(row) for row in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("largest distance to the mean of the honest, in its norm, over all cohorts")
    marks = [mark(name, linestyle="", **marker(*look)) for name, *look in RULES.values()]
    title = f"The {len(shown)} of {len(rows)} attacks that pull clair furthest"
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), title=title)
    return figure


def attack_matrix(data: Mapping[str, Any]) -> Drawn:
    """One figure."""
    yield "attack_matrix", matrix_figure(data["rows"])
