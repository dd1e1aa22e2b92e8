"""The table of the README's page "Does it work?", from the numbers of copying_rounds.py.

    python -m benchmarks.copying.rounds --json benchmarks/results/copying_rounds.json
    python -m benchmarks.figures.readme_table

Accuracy of the merged model on new words (percent, mean over seeds), 40 % of 20 clients bad, every
client with its own lora_A; the last column is the share of triggered words that are answered as the
backdoor wants.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "copying_rounds.json"
KINDS = {
    "wrong": "wrong labels",
    "random": "random labels",
    "poison": "sabotage (-2 x own update)",
    "backdoor": "backdoor",
}
COLUMNS = {
    "base": "base model",
    "local": "own adapter only",
    "factor-mean": "mean of A and of B",
    "mean": "exact mean",
    "geometric-median": "geometric median",
    "multi-krum": "Multi-Krum*",
    "clair merge": "`clair merge`",
    "oracle": "oracle",
}
INIT, SHARE = "own", 0.4


def table(results: dict[str, Any]) -> str:
    """Markdown, one row per aggregation and one column per kind of contamination."""
    rows = {
        row["kind"]: row["columns"]
        for row in results["rows"]
        if row["init"] == INIT and row["share"] == SHARE
    }
    lines = [
        "| accuracy on new words, % | " + " | ".join(KINDS.values()) + " | backdoor works, % |",
        "| --- |" + " ---: |" * (len(KINDS) + 1),
    ]
    for column, title in COLUMNS.items():
        cells = [f"{100 * rows[kind][column]['new_accuracy'][0]:.0f}" for kind in KINDS]
        cells.append(f"{100 * rows['backdoor'][column]['backdoor_words'][0]:.0f}")
        if column == "clair merge":
            title, cells = f"**{title}**", [f"**{cell}**" for cell in cells]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(table(json.loads(options.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
