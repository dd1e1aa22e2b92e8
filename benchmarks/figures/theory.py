"""Figures of `exact_recovery.py`, `stable_recovery.py` and `refinement.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    WIDTH,
    Drawn,
    finish,
    mark,
)

Numbers = Mapping[str, Any]


# Exact recovery


def predicted_edges(one: Numbers) -> list[float]:
    """Column at whose left the predicted success ends, for every subspace dimension.

    With a fixed lam the window is left before it closes: where lam <= sqrt(r / K_b).
    """
    closes = one["predicted_boundary"]
    if one["rule"] != "path":
        lam = float(one["rule"].removeprefix("lam = "))
        limits = [1 - dim / (lam**2 * one["n_clients"]) for dim in one["subspace_dim"]]
        closes = [min(pair) for pair in zip(closes, limits, strict=True)]
    return [sum(f < end - 1e-9 for f in one["fraction"]) - 0.5 for end in closes]


def success_panel(axes: Axes, one: Numbers) -> None:
    """Success rates of one map as cells, and the predicted edge as a line."""
    fractions, dims, rates = one["fraction"], one["subspace_dim"], one["success"]
    axes.imshow(rates, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for row, column in ((r, c) for r in range(len(dims)) for c in range(len(fractions))):
        text = f"{100 * rates[row][column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
    edges = [edge for edge in predicted_edges(one) for _ in (0, 1)]
    heights = [row + half for row in range(len(dims)) for half in (-0.5, 0.5)]
    axes.plot(edges, heights, color=RED, linewidth=2, solid_joinstyle="miter", clip_on=False)
    axes.set_xlim(-0.5, len(fractions) - 0.5)
    axes.set_xticks(range(len(fractions)), [f"{100 * f:.0f}" for f in fractions])
    axes.set_yticks(range(len(dims)), [str(dim) for dim in dims])
    axes.grid(False)
    rule = "" if one["rule"] == "path" else f", {one['rule']} only"
    axes.set_title(f"{one['outliers']}, {one['spectrum']} spectrum{rule}")


def exact_recovery(data: Numbers) -> Drawn:
    """Success over subspace dimension and contaminated fraction; one figure per number of
    clients."""
    for count in sorted({one["n_clients"] for one in data["maps"]}):
        maps = [one for one in data["maps"] if one["n_clients"] == count]
        lines = (len(maps) + 1) // 2
        size = (WIDTH, 0.9 + lines * (0.65 + 0.22 * len(maps[0]["success"])))
        figure, table = plt.subplots(lines, 2, figsize=size, squeeze=False)
        for axes, one in zip(table.flat, maps, strict=False):
            success_panel(axes, one)
        finish(table, len(maps), f"contaminated clients of {count}, %")
        for axes in table[:, 0]:
            axes.set_ylabel("dimension r")
        figure.suptitle(
            "Draws with subspace and set exact, %. Left of the red line: success predicted",
            fontsize=9,
        )
        yield f"exact_recovery_{count}", figure


# Stable recovery


def error_figure(curves: Sequence[Numbers]) -> Figure:
    """Subspace error against noise, a panel per number of clients."""
    figure, table = plt.subplots(
        1, len(curves), figsize=(WIDTH, 2.7), squeeze=False, sharex=True, sharey=True
    )
    for axes, one in zip(table[0], curves, strict=True):
        noise = one["noise"]
        for values, name, colour, dashes, width in (
            (one["oracle"], "oracle (told set and dimension)", GREY, "-", 6.0),
            (one["error"], "clair", BLUE, "-", 2.0),
            ([one["predicted_constant"] * x for x in noise], "predicted", ORANGE, "--", 1.2),
        ):
            axes.loglog(noise, values, dashes, color=colour, linewidth=width, label=name)
        axes.set_title(f"{one['n_clients']} clients: slope {one['slope']:.3f}")
        axes.set_xlabel("noise (norm over the signal's)")
    table[0][0].set_ylabel("subspace error (sine)")
    table[0][0].legend(fontsize=7.5)
    return figure


# By noise, the smallest first: drawn below the others, and wider, so that equal lines show.
SHADES = tuple(
    {"color": colour, "linewidth": width, "marker": shape, "markersize": size}
    for colour, width, shape, size in (
        (SKY, 5.0, "o", 6.0), (BLUE, 2.6, "s", 4.5), (RED, 1.2, "^", 3.5), (BLACK, 0.8, "D", 2.0),
    )
)  # fmt: skip


def set_figure(maps: Sequence[Numbers]) -> Figure:
    """Share of exact sets against separation, a panel per kind of cohort."""
    lines = (len(maps) + 1) // 2
    figure, table = plt.subplots(
        lines, 2, figsize=(WIDTH, 0.6 + 1.8 * lines), squeeze=False, sharex=True, sharey=True
    )
    noises = sorted({x for one in maps for x in one["noise"]})
    looks = dict(zip(noises, SHADES, strict=False))
    for axes, one in zip(table.flat, maps, strict=False):
        for noise, rates in zip(one["noise"], one["exact"], strict=True):
            shown = [100 * rate for rate in rates]
            axes.plot(one["separation"], shown, **looks[noise])
        axes.axhline(95, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_title(
            f"shared: {one['stacking']}; {one['outliers']} outliers, {one['n_clients']} clients"
        )
    finish(table, len(maps), "separation")
    for axes in table[:, 0]:
        axes.set_ylabel("exact sets, %")
    marks = [mark(f"noise {x:g}", **look) for x, look in looks.items()]
    marks.append(mark("95 %", color="#888888", linewidth=0.8, linestyle=":"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))
    return figure


def stable_recovery(data: Numbers) -> Drawn:
    """Subspace error against noise; the share of exact sets against separation."""
    yield "stable_recovery_error", error_figure(data["curves"])
    yield "stable_recovery_set", set_figure(data["maps"])


# Refinement

LOOKS = {
    "mean": ("plain mean", ORANGE, "-", 1.4),
    "formula": ("always refined", GREY, "-", 5.0),
    "choice": ("clair refine", GREEN, "-", 2.0),
}


def refinement_panel(axes: Axes, rows: Sequence[Numbers], crossing: Numbers | None) -> None:
    """Errors over the local one against heterogeneity, and where they cross."""
    for name, (_, colour, dashes, width) in LOOKS.items():
        some = [row for row in rows if row[name] is not None]
        x, y = [row["apart"] for row in some], [row[name] for row in some]
        axes.semilogy(x, y, dashes, color=colour, linewidth=width)
    axes.axhline(1, color=BLACK, linestyle=":", linewidth=1.4)
    if crossing is not None:
        axes.axvline(crossing["predicted"], color=RED, linestyle="--", linewidth=1)
        if crossing["measured"] is not None:
            axes.plot(crossing["measured"], 1, "o", color=RED, markersize=4.5, zorder=3)
    row = rows[0]
    kind = "" if row["kind"] == "noise" else f", {row['kind']}"
    title = f"{row['side']}{kind}\n{row['n_clients']} clients, noise {row['noise']:g}"
    axes.set_title(title, fontsize=8)
    axes.minorticks_off()


def refinement(data: Numbers) -> Drawn:
    """A panel per case, all of one table."""
    cases: dict[tuple[Any, ...], list[Numbers]] = {}
    for row in data["rows"]:
        case = tuple(row[name] for name in ("kind", "side", "n_clients", "noise"))
        cases.setdefault(case, []).append(row)
    found = {
        ("noise", *(one[n] for n in ("side", "clients", "noise"))): one for one in data["crossings"]
    }
    lines = (len(cases) + 3) // 4
    figure, table = plt.subplots(
        lines, 4, figsize=(WIDTH, 0.9 + 1.6 * lines), squeeze=False, sharex=True, sharey=True
    )
    for axes, (case, rows) in zip(table.flat, cases.items(), strict=False):
        refinement_panel(axes, rows, found.get(case))
    table[0][0].yaxis.set_major_formatter("{x:g}")
    finish(table, len(cases), "heterogeneity / noise")
    for axes in table[:, 0]:
        axes.set_ylabel("error / local")
    marks = [
        mark(name, color=colour, linestyle=dashes, linewidth=width)
        for name, colour, dashes, width in [*LOOKS.values(), ("local", BLACK, ":", 1.4)]
    ]
    marks.append(mark("crossing: predicted", color=RED, linestyle="--", linewidth=1))
    marks.append(mark("measured", color=RED, linestyle="", marker="o", markersize=4.5))
    figure.legend(handles=marks, loc="outside upper center", ncols=3, fontsize=8)
    yield "refinement", figure
