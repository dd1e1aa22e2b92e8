"""Figures from the numbers that the other programs wrote with `--json`.

    python -m benchmarks.figures.figures [--results benchmarks/results] \\
        [--output benchmarks/figures] [--format svg] [--only NAME ...]

Reads NAME.json for every name in `DRAWN` and writes SVG files that are the same bytes for the
same numbers (and the same matplotlib). A missing file is named and skipped. Shaded bands and
bars are 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.figures.attacks import attack_matrix
from benchmarks.figures.calibration import line_errors, stated_power
from benchmarks.figures.copying import copying_rounds
from benchmarks.figures.readme import does_it_work
from benchmarks.figures.style import STYLE, Drawn, save
from benchmarks.figures.theory import exact_recovery, refinement, stable_recovery

HERE = Path(__file__).resolve().parents[1]
DRAWN: dict[str, tuple[Callable[[Mapping[str, Any]], Drawn], ...]] = {
    "copying_rounds": (does_it_work, copying_rounds),
    "exact_recovery": (exact_recovery,),
    "stable_recovery": (stable_recovery,),
    "refinement": (refinement,),
    "attack_matrix": (attack_matrix,),
    "calibration_power": (stated_power,),
    "calibration_line": (line_errors,),
}


def draw_all(
    results: Path, output: Path, suffix: str = "svg", names: Sequence[str] = tuple(DRAWN)
) -> list[Path]:
    """Draw everything whose numbers are there; returns the files written."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name in names:
            source = results / f"{name}.json"
            if not source.exists():
                print(f"{source.name}: not there, skipped")
                continue
            data = json.loads(source.read_text(encoding="utf-8"))
            for drawn in DRAWN[name]:
                for title, figure in drawn(data):
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
    parser.add_argument("--only", nargs="+", choices=DRAWN, default=list(DRAWN), metavar="NAME")
    options = parser.parse_args()
    draw_all(options.results, options.output, options.format, options.only)


if __name__ == "__main__":
    main()
