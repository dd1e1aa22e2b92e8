"""The table of the README's "Does it work?", from the numbers of the pretrained cohorts.

    python -m benchmarks.pretrained.table --seeds 2 3 4 5 --json benchmarks/results/pretrained.json
    python -m benchmarks.figures.readme_table

Only seeds that were trained when the judge was finished. "Far off" counts cohorts that are judged,
with exit code 0, and merged more than 0.2 away from the mean of the benign clients, in its norm;
for the other rules, which judge nobody, cohorts whose result is as far off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "pretrained.json"
UNSEEN = (4, 5)
OFF = 0.2
ROWS = {
    "clean": "nobody bad",
    "several": "up to 40 % bad, two or more alike",
    "single": "one bad client",
    "trusted-60": "60 % bad, one honest client trusted",
}
COLUMNS = {"clair": "`clair`", "mean": "mean", "geometric-median": "geometric median"}
HEADER = (
    "| cohorts | bad clients found | honest ones contaminated | far off: "
    + " | far off: ".join(COLUMNS.values())
    + " |"
)


def is_off(result: dict[str, Any], rule: str) -> bool:
    """Whether what a rule merged is far from the mean of the benign; by `clair` only if nothing
    tells so."""
    if rule == "clair" and (result["outcome"] != "judged" or result["exit_code"] != 0):
        return False
    return bool(result["errors"].get(rule, 0.0) > OFF)


def line(title: str, results: Sequence[dict[str, Any]]) -> str:
    """One row of the table."""
    found = sum(r["bad"].get("contaminated", 0) + r["bad"].get("minority", 0) for r in results)
    bad = sum(sum(r["bad"].values()) for r in results)
    honest = sum(sum(r["honest"].values()) for r in results)
    wrong = sum(r["honest"].get("contaminated", 0) for r in results)
    off = [f"{sum(is_off(r, rule) for r in results)} of {len(results)}" for rule in COLUMNS]
    hits = f"{found} of {bad}" if bad else "-"
    return f"| {title} | {hits} | {wrong} of {honest} | " + " | ".join(off) + " |"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line per kind of cohort."""
    lines = [HEADER, "| --- |" + " ---: |" * (2 + len(COLUMNS))]
    for row, title in ROWS.items():
        some = [r for r in results if r["row"] == row and r["seed"] in UNSEEN]
        if some:
            lines.append(line(title, some))
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(table(json.loads(options.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
