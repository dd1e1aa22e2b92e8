"""The figures of docs/limits.md, from `copying_rounds.py`: what is found, what the merge is worth.

One panel per kind of contamination, over all rounds: those where all clients start from one
lora_A, and those where each starts from its own. Accuracies are averaged over both first, so that
bands are 1.96 standard errors over seeds; verdicts are counted over all rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.copying.tables import summary
from benchmarks.figures.copying import KINDS, LINES, Rows, rows_of, verdict_marks, verdict_panel
from benchmarks.figures.style import BLACK, BLUE, WIDTH, Drawn, finish, line, mark

MERGES = {
    "oracle": ("mean of the honest (oracle)", *LINES["oracle"][1:]),
    "base": ("base model", BLACK, ":", 1.4),
    "mean": ("plain mean", *LINES["mean"][1:]),
    "geometric-median": ("geometric median", *LINES["geometric-median"][1:]),
    "multi-krum": ("Multi-Krum, told how many", *LINES["multi-krum"][1:]),
    "clair merge": LINES["clair merge"],
}
MEASURE = "new_accuracy"
SHADE = "#f3f3f3"  # behind rounds with more than half of the clients contaminated


def pooled(cells: Sequence[Mapping[str, Any]]) -> Rows:
    """One row per kind and share, as `copying_tables.summary`, with the columns of `MERGES`."""
    rows = summary([{**cell, "init": "all"} for cell in cells])
    by_seed: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_seed.setdefault((cell["kind"], cell["share"], cell["seed"]), []).append(cell)
    averaged = []
    for some in by_seed.values():
        scores = {
            name: {MEASURE: sum(one["scores"][name][MEASURE] for one in some) / len(some)}
            for name in MERGES
        }
        averaged.append({**some[0], "init": "all", "scores": scores})
    for row, means in zip(rows, summary(averaged), strict=True):
        row["columns"] = means["columns"]
    return rows


def panels(rows: Rows) -> tuple[Figure, Iterator[tuple[Axes, Rows]]]:
    """A figure with a titled panel per kind, and its panels with their rows."""
    by_kind = {kind: rows_of({"rows": rows}, "all", kind) for kind in KINDS}
    kinds = [kind for kind, some in by_kind.items() if len(some) > 1]
    lines = (len(kinds) + 1) // 2
    figure, table = plt.subplots(
        lines, 2, figsize=(WIDTH, 1.0 + 1.9 * lines), squeeze=False, sharex=True, sharey=True
    )
    finish(table, len(kinds), "contaminated clients of 20, %")
    for axes, kind in zip(table.flat, kinds, strict=False):
        axes.set_title(KINDS[kind], fontweight="bold")
    return figure, zip(table.flat, [by_kind[kind] for kind in kinds], strict=False)


def headed(figure: Figure, marks: Sequence[Line2D], title: str, columns: int) -> None:
    """Title and legend above the panels."""
    half = Patch(facecolor=SHADE, edgecolor="#cccccc", label="more than half contaminated")
    legend = figure.legend(
        handles=[*marks, half], loc="outside upper center", ncols=columns, fontsize=8, title=title
    )
    legend.get_title().set_fontsize(9.5)


def merge_panel(axes: Axes, rows: Rows) -> None:
    """Accuracy against the contaminated share in percent, both of them."""
    axes.axvspan(50, 62, color=SHADE, linewidth=0)
    shares = [100 * row["share"] for row in rows]
    for column, look in MERGES.items():
        pairs = [[100 * x for x in row["columns"][column][MEASURE]] for row in rows]
        if column == "base":  # the same model everywhere: its band would cover the others
            pairs = [[mean, 0.0] for mean, _ in pairs]
        line(axes, shares, pairs, look, 0, 100)
        if column != "clair merge":
            continue
        for share, (mean, _), row in zip(shares, pairs, rows, strict=True):
            if row["verdicts"]["undetermined"]:
                axes.plot(share, mean, "o", markersize=6, markerfacecolor="white", color=BLUE)
                axes.annotate(
                    f"{row['verdicts']['undetermined']}/{row['rounds']}", (share, mean), (-5, -11),
                    textcoords="offset points", ha="right", fontsize=7.5, color=BLUE,
                )  # fmt: skip
    axes.set_xlim(-2, 62)
    axes.set_ylim(0, 104)
    axes.set_xticks(shares)


def merge_figure(rows: Rows, over: str) -> Figure:
    """Accuracy on all new words after merging by several rules."""
    figure, parts = panels(rows)
    for axes, some in parts:
        merge_panel(axes, some)
    for axes in figure.axes[::2]:
        axes.set_ylabel("accuracy, %")
    marks = [
        mark(name, color=colour, linestyle=dashes, linewidth=width)
        for name, colour, dashes, width in MERGES.values()
    ]
    title = f"Accuracy on all new words after the merge ({over})"
    headed(figure, marks, title, 3)
    figure.supxlabel(
        "open circle: so many rounds undetermined, nothing merged, base model scored; "
        "bands: 95 % over seeds",
        fontsize=8, color="#555555",
    )  # fmt: skip
    return figure


def detect_figure(rows: Rows, over: str) -> Figure:
    """Hits, false flags and undetermined rounds with 95 % intervals."""
    figure, parts = panels(rows)
    for axes, some in parts:
        verdict_panel(axes, some)
        first = sum(row["share"] <= 0.5 for row in some)
        axes.axvspan(first - 0.5, len(some) - 0.5, color=SHADE, linewidth=0)
        axes.set_xlim(-0.5, len(some) - 0.5)
    for axes in figure.axes[::2]:
        axes.set_ylabel("%")
    title = f"Who is left out, with 95 % intervals ({over})"
    headed(figure, verdict_marks(), title, 2)
    return figure


def does_it_work(data: Mapping[str, Any]) -> Drawn:
    """Both figures."""
    cells = data["rounds"]
    inits = {cell["init"] for cell in cells}
    seeds = len({cell["seed"] for cell in cells})
    starts = "common and own lora_A together" if len(inits) == 2 else f"lora_A: {inits.pop()}"
    rows, over = pooled(cells), f"{starts}, {seeds} seeds"
    yield "does_it_work_merge", merge_figure(rows, over)
    yield "does_it_work_detect", detect_figure(rows, over)
