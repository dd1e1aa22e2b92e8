"""False flags and abstentions where nobody is bad, and what happens to half-overlapping clients.

    python -m benchmarks.attacks.false_flags [--quick] [--pools ...] [--draws 2] [--json PATH]

Two kinds of cohorts from every trained pool: `clean` (K benign clients) and `partial` (K - 1 of
them and one whose data overlaps the others' by half only). Nobody in them is contaminated: every
client called contaminated, duplicate or rejected is a false flag. The last columns are about the
partly overlapping client alone. Intervals are Wilson's at 95 %; cohorts of one pool share clients,
so that they are somewhat too narrow.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import clair_cli
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member

SIZES = (4, 5, 6, 8, 12, 16, 24, 40, 64)
FLAGS = ("contaminated", "duplicate", "rejected")
LEVELS = ("benign", "suspicious", "contaminated")


def interval(hits: int, total: int) -> str:
    """A share with its Wilson interval, in percent."""
    if not total:
        return "-"
    from scipy.stats import binomtest  # most of a second

    found = binomtest(hits, total).proportion_ci(method="wilson")
    return f"{100 * hits / total:.1f} ({100 * found.low:.1f} .. {100 * found.high:.1f})"


def judged(members: Sequence[Member]) -> tuple[bool, dict[str, str]]:
    """Whether there is a verdict on the cohort, and each client's."""
    clients = {name: (state, config) for name, state, config, _ in members}
    report = clair_cli.inspect(clients, fresh=True).report
    return report.cohort.outcome == "judged", {c.name: c.verdict for c in report.clients}


def count(members: Sequence[Member], tally: Counter[str]) -> None:
    """Judge one cohort and add it to its row."""
    decided, verdicts = judged(members)
    tally["cohorts"] += 1
    tally["undetermined"] += not decided
    if not decided:
        return
    tally["clients"] += len(members)
    tally["flags"] += sum(v in FLAGS for v in verdicts.values())
    tally["suspicious"] += sum(v == "suspicious" for v in verdicts.values())
    for name, verdict in verdicts.items():
        if name.startswith("partial"):
            tally["partials"] += 1
            tally[f"partial {verdict}"] += 1


def cases(pool: Path, draws: int, sizes: Sequence[int]) -> Iterator[tuple[str, int, list[Member]]]:
    """Cohorts of one pool: (kind, size, members)."""
    for size in sizes:
        for draw in range(1, draws + 1):
            yield "clean", size, cohorts.cohort(pool, size, draw=draw)
            yield "partial", size, cohorts.cohort(pool, size - 1, partial=1, draw=draw)


HEADER = (
    f"{'cohorts':30} {'n':>4} {'undetermined %':>20} {'false flags %':>20} {'suspicious %':>20} "
    f"{'partly overlapping: ben/susp/cont':>34}"
)


def row(title: str, tally: Counter[str]) -> str:
    """One line of the table."""
    partial = "/".join(str(tally[f"partial {level}"]) for level in LEVELS)
    return (
        f"{title:30} {tally['cohorts']:4} {interval(tally['undetermined'], tally['cohorts']):>20} "
        f"{interval(tally['flags'], tally['clients']):>20} "
        f"{interval(tally['suspicious'], tally['clients']):>20} "
        f"{partial if tally['partials'] else '-':>34}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", help="default: all in the cache")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--draws", type=int, default=2, help="cohorts per pool, kind and size")
    parser.add_argument("--quick", action="store_true", help="two pools, sizes up to 12, one draw")
    parser.add_argument("--cache", type=Path, default=cohorts.CACHE)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pools = options.pools or sorted(
        p.name for p in options.cache.glob("*-*-s*") if (p / "benign-00").exists()
    )
    if options.quick:
        pools, options.draws = pools[:2], 1
        options.sizes = [size for size in options.sizes if size <= 12]
    rows: dict[str, Counter[str]] = {}
    for pool in pools:
        for kind, size, members in cases(options.cache / pool, options.draws, options.sizes):
            tally: Counter[str] = Counter()
            count(members, tally)
            for title in (f"{pool} {kind}", f"K = {size} {kind}", f"all {kind}"):
                rows.setdefault(title, Counter()).update(tally)
    print(HEADER)
    for title in sorted(rows, key=lambda t: (t.startswith("all"), t.startswith("K ="), len(t), t)):
        print(row(title, rows[title]))
    if options.json:
        text = json.dumps({"false_flags": rows}, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
