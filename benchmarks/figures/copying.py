"""Figures of `copying_rounds.py`: benign accuracy and loss, backdoor success, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    Drawn,
    label_ends,
    line,
    mark,
)

KINDS = {
    "wrong": "wrong labels", "random": "random labels", "backdoor": "backdoor",
    "poison": "update x -2",
}  # fmt: skip
INITS = {"same": "one lora_A for all", "own": "own lora_A each"}
# column: (label, colour, line style, line width); the first ones are drawn below the others
LINES = {
    "oracle": ("oracle", GREY, "-", 5.0),
    "local": ("local", BLACK, ":", 1.4),
    "mean": ("mean", ORANGE, "-", 1.4),
    "geometric-median": ("geo. median", PURPLE, "--", 1.4),
    "multi-krum": ("Multi-Krum", SKY, "--", 1.4),
    "clair merge": ("clair merge", BLUE, "-", 2.0),
    "clair refine": ("clair refine", GREEN, "-", 2.0),
}
NOTE = (
    "open circle: rounds among them undetermined, with the base model for clair merge and local\n"
    "adapters for clair refine, which is shown where any benign client got a refined adapter"
)
# count in the verdicts: (label, colour, marker, what it is a share of; rounds if empty)
SORTS = {
    "hits": ("contaminated clients left out", BLUE, "o", "bad"),
    "false_flags": ("honest clients left out", RED, "s", "honest"),
    "undetermined": ("rounds undetermined", "#808080", "^", ""),
}

Rows = Sequence[Mapping[str, Any]]


def rows_of(data: Mapping[str, Any], init: str, kind: str) -> Rows:
    """Rows of one init and kind by share; the round with nobody bad is every kind's first."""
    some = [r for r in data["rows"] if r["init"] == init and r["kind"] in ("clean", kind)]
    return sorted(some, key=lambda row: row["share"])


def rounds_panel(
    axes: Axes, rows: Rows, measure: str, lines: Mapping[str, Any], unit: str = "%"
) -> list[tuple[float, str, str, float]]:
    """One measure against the contaminated share in percent; returns what to write at the
    right ends, for `label_ends`. `NOTE` says what is left out and what is marked."""
    ends = []
    scale, least, most = (100, 0.0, 100.0) if unit == "%" else (1, 0.1, 100.0)
    for column, look in lines.items():
        some = [row for row in rows if measure in row["columns"].get(column, {})]
        if column == "clair refine":
            some = [row for row in some if row["verdicts"]["refined"]]
        if not some:
            continue
        shares = [100 * row["share"] for row in some]
        pairs = [[scale * x for x in row["columns"][column][measure]] for row in some]
        line(axes, shares, pairs, look, least, most)
        ends.append((pairs[-1][0], look[0], look[1], shares[-1]))
        for share, (mean, _), row in zip(shares, pairs, some, strict=True):
            if column in ("clair merge", "clair refine") and row["verdicts"]["undetermined"]:
                axes.plot(share, mean, "o", markersize=6, markerfacecolor="white", color=look[1])
    axes.set_xticks([100 * row["share"] for row in rows])
    return ends


def benign_figure(data: Mapping[str, Any], init: str, what: str) -> Figure:
    """Benign clients' "accuracy" or "loss": a row per kind; own words left, all new ones right."""
    kinds = [kind for kind in KINDS if len(rows_of(data, init, kind)) > 1]
    figure, table = plt.subplots(
        len(kinds), 2, figsize=(WIDTH, 2.1 * len(kinds)), squeeze=False, sharex=True, sharey=True
    )
    unit = "%" if what == "accuracy" else "nats a word"
    titles = {"own": "own words", "new": "all new words"}
    later = []
    for kind, line_of_axes in zip(kinds, table, strict=True):
        rows = rows_of(data, init, kind)
        for axes, (words, title) in zip(line_of_axes, titles.items(), strict=True):
            ends = rounds_panel(axes, rows, f"{words}_{what}", LINES, unit)
            later.append((axes, ends, 100 * rows[-1]["share"]))
            axes.set_title(f"{KINDS[kind]}: {title}")
        line_of_axes[0].set_ylabel(f"{what}, {unit}")
    if what == "loss":
        table[0][0].set_yscale("log", base=2)
        table[0][0].yaxis.set_major_formatter("{x:g}")
    for axes, ends, x in later:
        label_ends(axes, ends, x)
    for axes in table[-1]:
        axes.set_xlabel("contaminated clients of 20, %")
    figure.suptitle(NOTE, fontsize=8, color="#555555")
    return figure


def backdoor_figure(data: Mapping[str, Any], inits: Sequence[str]) -> Figure:
    """Backdoor success: a column per init; single words above, whole sequences below."""
    measures = {"backdoor_words": "single words, %", "backdoor": "whole sequences, %"}
    lines = {**LINES, "attack": ("attackers", RED, ":", 1.4)}
    figure, table = plt.subplots(
        2, len(inits), figsize=(WIDTH, 4.8), squeeze=False, sharex=True, sharey="row"
    )
    for (measure, name), line_of_axes in zip(measures.items(), table, strict=True):
        later = []
        for axes, init in zip(line_of_axes, inits, strict=True):
            rows = rows_of(data, init, "backdoor")
            ends = rounds_panel(axes, rows, measure, lines)
            later.append((axes, ends, 100 * rows[-1]["share"]))
            axes.set_title(INITS[init])
        for axes, ends, x in later:
            label_ends(axes, ends, x)
        line_of_axes[0].set_ylabel(f"backdoor success,\n{name}")
    for axes in table[-1]:
        axes.set_xlabel("backdoored clients of 20, %")
    figure.suptitle(NOTE, fontsize=8, color="#555555")
    return figure


def verdict_panel(axes: Axes, rows: Rows) -> None:
    """Shares of hits, false flags and undetermined rounds by contaminated share."""
    for shift, (sort, (_, colour, shape, whole)) in zip((-1, 0, 1), SORTS.items(), strict=True):
        for place, row in enumerate(rows):
            total = row["verdicts"].get(whole, row["rounds"])
            if not total:
                continue
            share = 100 * row["verdicts"][sort] / total
            low, high = (100 * x for x in row["intervals"][sort])
            axes.errorbar(
                place + 0.2 * shift, share, [[max(0, share - low)], [max(0, high - share)]],
                color=colour, marker=shape, markersize=4.5, linewidth=1.2, zorder=3,
            )  # fmt: skip
    axes.set_xticks(range(len(rows)), [f"{100 * row['share']:.0f}" for row in rows])
    axes.grid(False, axis="x")
    axes.set_ylim(-4, 104)


def verdict_marks() -> list[Line2D]:
    """Legend of `verdict_panel`."""
    return [
        mark(text, color=colour, marker=shape, markersize=4.5, linewidth=1.2)
        for text, colour, shape, _ in SORTS.values()
    ]


def verdict_figure(data: Mapping[str, Any], inits: Sequence[str]) -> Figure:
    """Hits, false flags and undetermined rounds: a row per kind, a column per init."""
    kinds = [kind for kind in KINDS if len(rows_of(data, inits[0], kind)) > 1]
    figure, table = plt.subplots(
        len(kinds), len(inits), figsize=(WIDTH, 1.75 * len(kinds) + 0.4), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for kind, line_of_axes in zip(kinds, table, strict=True):
        for axes, init in zip(line_of_axes, inits, strict=True):
            verdict_panel(axes, rows_of(data, init, kind))
            axes.set_title(f"{KINDS[kind]}, {INITS[init]}")
        line_of_axes[0].set_ylabel("%")
    for axes in table[-1]:
        axes.set_xlabel("contaminated clients of 20, %")
    figure.legend(handles=verdict_marks(), loc="outside upper center", ncols=3)
    return figure


def copying_rounds(data: Mapping[str, Any]) -> Drawn:
    """Figures of `copying_rounds.py`."""
    inits = [init for init in INITS if any(row["init"] == init for row in data["rows"])]
    for init in inits:
        for what in ("accuracy", "loss"):
            yield f"copying_{what}_{init}", benign_figure(data, init, what)
    yield "copying_backdoor", backdoor_figure(data, inits)
    yield "copying_verdicts", verdict_figure(data, inits)
