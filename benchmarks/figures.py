"""Figures from the numbers that the other programs wrote with `--json`.

    python benchmarks/figures.py [--results benchmarks/results] [--output benchmarks/figures] \\
        [--format svg]

Reads NAME.json for every name in `DRAWN` and writes SVG files that are the same bytes for the
same numbers (and the same matplotlib). A missing file is named and skipped. Colours are those of
Okabe and Ito, which colour-blind people can tell apart; shaded bands and bars are 95 % intervals.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
WIDTH = 7.2  # inches: 691 pixels in a browser
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
GREY = "#b0b0b0"
STYLE = {
    "svg.hashsalt": "clair", "svg.fonttype": "path", "font.size": 9, "axes.titlesize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8, "axes.titlelocation": "left", "figure.facecolor": "white",
    "axes.grid": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False,
    "font.family": "DejaVu Sans", "figure.constrained_layout.use": True,
}  # fmt: skip
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
    "clair merge, open circle: at least one round undetermined, base model scored there\n"
    "clair refine: shown where any benign client got a refined adapter"
)

Rows = Sequence[Mapping[str, Any]]
Drawn = Iterator[tuple[str, Figure]]


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
            if column == "clair merge" and row["verdicts"]["undetermined"]:
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


def verdict_figure(data: Mapping[str, Any], inits: Sequence[str]) -> Figure:
    """Hits, false flags and undetermined rounds: a row per kind, a column per init."""
    kinds = [kind for kind in KINDS if len(rows_of(data, inits[0], kind)) > 1]
    sorts = {
        "hits": ("contaminated clients left out", BLUE, "o", "bad"),
        "false_flags": ("honest clients left out", RED, "s", "honest"),
        "undetermined": ("rounds undetermined", GREY, "^", ""),
    }
    figure, table = plt.subplots(
        len(kinds), len(inits), figsize=(WIDTH, 1.75 * len(kinds) + 0.4), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for kind, line_of_axes in zip(kinds, table, strict=True):
        for axes, init in zip(line_of_axes, inits, strict=True):
            rows = rows_of(data, init, kind)
            for shift, (sort, (_, colour, marker, whole)) in zip(
                (-1, 0, 1), sorts.items(), strict=True
            ):
                for place, row in enumerate(rows):
                    total = row["verdicts"].get(whole, row["rounds"])
                    if not total:
                        continue
                    share = 100 * row["verdicts"][sort] / total
                    low, high = (100 * x for x in row["intervals"][sort])
                    axes.errorbar(
                        place + 0.2 * shift, share, [[max(0, share - low)], [max(0, high - share)]],
                        color=colour, marker=marker, markersize=4.5, linewidth=1.2,
                    )  # fmt: skip
            axes.set_title(f"{KINDS[kind]}, {INITS[init]}")
            axes.set_xticks(range(len(rows)), [f"{100 * row['share']:.0f}" for row in rows])
            axes.grid(False, axis="x")
            axes.set_ylim(-4, 104)
        line_of_axes[0].set_ylabel("%")
    for axes in table[-1]:
        axes.set_xlabel("contaminated clients of 20, %")
    marks = [
        plt.Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=text)
        for text, colour, marker, _ in sorts.values()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3)
    return figure


def copying_rounds(data: Mapping[str, Any]) -> Drawn:
    """Figures of `copying_rounds.py`."""
    inits = [init for init in INITS if any(row["init"] == init for row in data["rows"])]
    for init in inits:
        for what in ("accuracy", "loss"):
            yield f"copying_{what}_{init}", benign_figure(data, init, what)
    yield "copying_backdoor", backdoor_figure(data, inits)
    yield "copying_verdicts", verdict_figure(data, inits)


def exact_recovery(data: Mapping[str, Any]) -> Drawn:
    """Success over subspace dimension and contaminated fraction, and where the predicted window
    closes; one figure per number of clients."""
    for count in sorted({one["n_clients"] for one in data["maps"]}):
        maps = [one for one in data["maps"] if one["n_clients"] == count]
        lines = (len(maps) + 1) // 2
        size = (WIDTH, 0.9 + lines * (0.65 + 0.22 * len(maps[0]["success"])))
        figure, table = plt.subplots(lines, 2, figsize=size, squeeze=False)
        for axes, one in zip(table.flat, maps, strict=False):
            fractions, dims, rates = one["fraction"], one["subspace_dim"], one["success"]
            axes.imshow(rates, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
            for row, column in ((r, c) for r in range(len(dims)) for c in range(len(fractions))):
                text = f"{100 * rates[row][column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7)
            step = fractions[1] - fractions[0]
            edges = [edge / step for edge in one["predicted_boundary"] for _ in (0, 1)]
            heights = [row + half for row in range(len(dims)) for half in (-0.5, 0.5)]
            axes.plot(edges, heights, color=RED, linewidth=1.6)
            axes.set_xlim(-0.5, len(fractions) - 0.5)
            axes.set_xticks(range(len(fractions)), [f"{100 * f:.0f}" for f in fractions])
            axes.set_yticks(range(len(dims)), [str(dim) for dim in dims])
            axes.grid(False)
            rule = "" if one["rule"] == "path" else f", {one['rule']}"
            axes.set_title(f"{one['outliers']}, {one['spectrum']}{rule}")
        for axes in table.flat[len(maps) :]:
            axes.set_visible(False)
        for axes in table[-1]:
            axes.set_xlabel(f"contaminated clients of {count}, %")
        for axes in table[:, 0]:
            axes.set_ylabel("subspace dimension")
        figure.suptitle(
            "Draws with subspace and set exact, %; red: the predicted window closes", fontsize=9
        )
        yield f"exact_recovery_{count}", figure


def stable_recovery(data: Mapping[str, Any]) -> Drawn:
    """Subspace error against noise; the share of exact sets against separation."""
    curves, maps = data["curves"], data["maps"]
    figure, table = plt.subplots(
        1, len(curves), figsize=(WIDTH, 2.7), squeeze=False, sharex=True, sharey=True
    )
    for axes, one in zip(table[0], curves, strict=True):
        noise = one["noise"]
        for values, name, colour, dashes, width in (
            (one["oracle"], "oracle (told set and dimension)", GREY, "-", 5.0),
            ([one["predicted_constant"] * x for x in noise], "predicted", RED, "--", 1.2),
            (one["error"], "clair", BLUE, "-", 1.6),
        ):
            axes.loglog(noise, values, dashes, color=colour, linewidth=width, label=name)
        axes.set_title(f"{one['n_clients']} clients: slope {one['slope']:.3f}")
        axes.set_xlabel("noise (norm over the signal's)")
    table[0][0].set_ylabel("subspace error (sine)")
    table[0][0].legend(fontsize=7.5)
    yield "stable_recovery_error", figure
    lines = (len(maps) + 1) // 2
    figure, table = plt.subplots(
        lines, 2, figsize=(WIDTH, 0.5 + 1.8 * lines), squeeze=False, sharex=True, sharey=True
    )
    shades = (SKY, BLUE, GREEN, ORANGE, RED)
    noises = sorted({x for one in maps for x in one["noise"]})
    for axes, one in zip(table.flat, maps, strict=False):
        for noise, rates in zip(one["noise"], one["exact"], strict=True):
            colour = shades[noises.index(noise) % len(shades)]
            shown = [100 * rate for rate in rates]
            axes.plot(one["separation"], shown, color=colour, marker="o", markersize=3)
        axes.axhline(95, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"{one['stacking']}, {one['outliers']}, {one['n_clients']} clients")
    for axes in table.flat[len(maps) :]:
        axes.set_visible(False)
    for axes in table[-1]:
        axes.set_xlabel("separation")
    for axes in table[:, 0]:
        axes.set_ylabel("exact sets, %")
    marks = [
        plt.Line2D([], [], color=shades[i % len(shades)], marker="o", markersize=3, label=f"{x:g}")
        for i, x in enumerate(noises)
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), title="noise")
    yield "stable_recovery_set", figure


def refinement(data: Mapping[str, Any]) -> Drawn:
    """Error over the local one against heterogeneity, and the crossings; a panel per case."""
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in data["rows"]:
        case = tuple(row[name] for name in ("kind", "side", "n_clients", "noise"))
        cases.setdefault(case, []).append(row)
    found = {tuple(one[n] for n in ("side", "clients", "noise")): one for one in data["crossings"]}
    looks = {
        "mean": LINES["mean"], "formula": ("always refined", GREY, "-", 5.0),
        "choice": LINES["clair refine"],
    }  # fmt: skip
    lines = (len(cases) + 2) // 3
    figure, table = plt.subplots(
        lines, 3, figsize=(WIDTH, 0.6 + 1.6 * lines), squeeze=False, sharex=True, sharey=True
    )
    for axes, ((kind, side, clients, noise), rows) in zip(table.flat, cases.items(), strict=False):
        for name, (_, colour, dashes, width) in looks.items():
            some = [row for row in rows if row[name] is not None]
            x, y = [row["apart"] for row in some], [row[name] for row in some]
            axes.semilogy(x, y, dashes, color=colour, linewidth=width)
        axes.axhline(1, color=BLACK, linestyle=":", linewidth=1.4)
        crossing = found.get((side, clients, noise)) if kind == "noise" else None
        if crossing is not None:
            axes.axvline(crossing["predicted"], color=RED, linestyle="--", linewidth=1)
            if crossing["measured"] is not None:
                axes.plot(crossing["measured"], 1, "o", color=RED, markersize=5)
        axes.set_title(f"{kind}, {side}, K {clients}, noise {noise:g}", fontsize=8)
    table[0][0].yaxis.set_major_formatter("{x:g}")
    for axes in table.flat[len(cases) :]:
        axes.set_visible(False)
    for axes in table[:, 0]:
        axes.set_ylabel("error / local")
    for axes in table[-1]:
        axes.set_xlabel("heterogeneity / noise")
    marks = [
        plt.Line2D([], [], color=colour, linestyle=dashes, linewidth=width, label=name)
        for name, colour, dashes, width in [*looks.values(), ("local", BLACK, ":", 1.4)]
    ] + [
        plt.Line2D([], [], color=RED, linestyle="--", linewidth=1, label="crossing: predicted"),
        plt.Line2D([], [], color=RED, linestyle="", marker="o", markersize=5, label="measured"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=6, fontsize=8)
    yield "refinement", figure


DRAWN: dict[str, Callable[[Mapping[str, Any]], Drawn]] = {
    "copying_rounds": copying_rounds,
    "exact_recovery": exact_recovery,
    "stable_recovery": stable_recovery,
    "refinement": refinement,
}


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


def draw_all(results: Path, output: Path, suffix: str = "svg") -> list[Path]:
    """Draw everything whose numbers are there; returns the files written."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, drawn in DRAWN.items():
            source = results / f"{name}.json"
            if not source.exists():
                print(f"{source.name}: not there, skipped")
                continue
            for title, figure in drawn(json.loads(source.read_text(encoding="utf-8"))):
                written.append(output / f"{title}.{suffix}")
                save(figure, written[-1])
                print(f"{written[-1].name}: {written[-1].stat().st_size} bytes")
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE / "figures")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    draw_all(options.results, options.output, options.format)


if __name__ == "__main__":
    main()
