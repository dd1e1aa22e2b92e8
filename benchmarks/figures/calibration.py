"""Figures of `calibration/power.py` and `calibration/line.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.figures.style import BLACK, BLUE, GREY, ORANGE, WIDTH, Drawn, mark

NEAR = 0.05
MOST = 1.5
# Shares of none are drawn here.
LEAST_SHARE = 2e-4
LOOKS = {"round": (BLUE, "o", "of the round"), "client": (ORANGE, "s", "of a client")}
LINES = {"planted": (GREY, "s", "planted just at the line"), "honest": (BLUE, "o", "honest")}


def stated_power(data: Mapping[str, Any]) -> Drawn:
    """Stated power beside how often an unrelated client was found, in bins of equal count."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.6, 3.4))
    axes.fill_between([0, 1], [-NEAR, 1 - NEAR], [NEAR, 1 + NEAR], color="#eeeeee", linewidth=0)
    axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.8)
    for kind, (colour, shape, _) in LOOKS.items():
        _, stated, found, error = zip(*data[kind], strict=True)
        axes.errorbar(
            stated, found, yerr=error, color=colour, marker=shape, markersize=4, linestyle="none",
            elinewidth=0.8, alpha=0.9,
        )  # fmt: skip
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("stated power")
    axes.set_ylabel("an unrelated client was found")
    axes.legend(
        handles=[
            mark(text, color=colour, marker=shape, linestyle="none")
            for colour, shape, text in LOOKS.values()
        ],
        loc="lower right",
    )
    yield "stated_power", figure


def line_errors(data: Mapping[str, Any]) -> Drawn:
    """How often clients are said to have less than the line's share, beside the nominal rate."""
    figure, axes = plt.subplots(figsize=(WIDTH * 0.6, 3.4))
    levels = data["levels"]
    axes.plot(levels, levels, color=BLACK, linewidth=0.8)
    axes.plot(levels, [MOST * level for level in levels], color=BLACK, linewidth=0.8, dashes=(4, 3))
    for kind, (colour, shape, _) in LINES.items():
        for _, _, *shares in data[kind]:
            drawn = [max(share, LEAST_SHARE) for share in shares]
            axes.plot(levels, drawn, color=colour, marker=shape, markersize=3.5, linewidth=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    ticks = [LEAST_SHARE, *sorted(levels)]
    axes.set_yticks(ticks, ["none", *(f"{level:g}" for level in sorted(levels))])
    axes.minorticks_off()
    axes.set_xlabel("nominal rate")
    axes.set_ylabel("said to be below the line")
    axes.legend(
        handles=[
            mark("as stated", color=BLACK, linewidth=0.8),
            mark("1.5 times that", color=BLACK, linewidth=0.8, dashes=(4, 3)),
            *(mark(text, color=colour, marker=shape) for colour, shape, text in LINES.values()),
        ]
    )
    yield "line_errors", figure
