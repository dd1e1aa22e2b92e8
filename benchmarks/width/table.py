"""Simulated layers of any width: who is found, how far off the merge is, and the evidence in pairs.

    python -m benchmarks.width.table [--widths 64 256] [--modules 6 28] ... [--sizes 8 16 32] \\
        [--draws 1] [--quick] [--json PATH]

One row for each pool that `python -m benchmarks.width.simulate` has made, then one for each case
over all pools. Columns:

- exact: judged, with all bad clients found and all honest ones benign (a cohort of bad clients
  alone: undetermined);
- cont, min: bad clients that are contaminated (or a duplicate, or rejected) and in a minority;
- false, min, susp: honest clients that are contaminated, in a minority, suspicious;
- undet: cohorts without a verdict;
- silent: judged with exit code 0, and the merge is more than 0.2 off the mean of the honest;
- clair: mean error of the merge, over the cohorts that were merged; mean, geomed, m-krum: of the
  plain mean, the geometric median, and Multi-Krum told the true number, over all cohorts.

Then what these cohorts are to reach, and do (`target_lines`).

The last table has means over all pairs of a pool, honest with honest and honest with bad: the
cosine, z (see `pairs.py`), and the cosine of D D'.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.width import simulate
from benchmarks.width.cohorts import LEFT_OUT, RULES, Found, Pool, cases, draw, judge, load_pool
from benchmarks.width.pairs import split

HEADER = (
    f"{'pool or case':32} {'n':>4} {'exact':>5} {'cont':>5} {'min':>4} {'of':>5} "
    f"{'false':>5} {'min':>4} {'susp':>4} {'of':>5} {'undet':>5} {'silent':>6} "
    f"{'clair':>6} " + " ".join(f"{name:>6}" for name in RULES)
)
# From so many modules, and z of the pairs of honest clients, on nearly all cohorts are to be exact.
MANY, CLEAR_Z = 112, 0.25
PAIR_HEADER = (
    f"{'pool':32} {'cosine honest/mixed':>20} {'z honest/mixed':>16} {'output honest/mixed':>20}"
)


def count(verdicts: Sequence[Sequence[str]], wanted: Sequence[str]) -> int:
    """How many verdicts are one of those wanted."""
    return sum(verdict in wanted for some in verdicts for verdict in some)


def average(values: Sequence[float]) -> str:
    """Mean as text."""
    return f"{sum(values) / len(values):6.2f}" if values else f"{'-':>6}"


def row(title: str, cohorts: Sequence[Found]) -> str:
    """One line of the first table."""
    bad, honest = [one.bad for one in cohorts], [one.honest for one in cohorts]
    errors = [[one.peers[name] for one in cohorts if one.peers] for name in RULES]
    merged = [one.error for one in cohorts if one.error is not None]
    return (
        f"{title:32} {len(cohorts):4} {sum(one.exact for one in cohorts):5} "
        f"{count(bad, LEFT_OUT):5} {count(bad, ['minority']):4} {sum(map(len, bad)):5} "
        f"{count(honest, LEFT_OUT):5} {count(honest, ['minority']):4} "
        f"{count(honest, ['suspicious']):4} {sum(map(len, honest)):5} "
        f"{sum(not one.judged for one in cohorts):5} {sum(one.silent for one in cohorts):6} "
        f"{average(merged)} " + " ".join(map(average, errors))
    )


def target_lines(found: Sequence[tuple[int, float, Found]]) -> list[str]:
    """What is to be reached, and what is: one line for each number that any cohort speaks to.

    Args:
        found: of each cohort the number of modules, the mean z of its pool's honest pairs, and what
            came out.
    """
    honest = [one for one in found if one[2].honest]
    clear = [one.exact for modules, z, one in honest if modules >= MANY and z >= CLEAR_Z]
    targets = (
        ("silent cohorts", [one.silent for _, _, one in honest], 0.0, True),
        (f"{MANY} modules, honest pairs at z {CLEAR_Z:g} or more: exact", clear, 0.90, False),
        ("every client bad, nothing shared: undetermined",
         [not one.judged for _, _, one in found if not one.honest], 0.95, False),
    )  # fmt: skip
    lines = []
    for text, hits, bound, at_most in targets:
        if hits:
            share = sum(hits) / len(hits)
            reached = share <= bound if at_most else share >= bound
            asked = f"{'<=' if at_most else '>='} {100 * bound:g} %"
            count = f"{sum(hits)} of {len(hits)}"
            line = f"{text:52} {asked:>9} {count:>12} {100 * share:6.1f} %"
            lines.append(line + ("" if reached else "  no"))
    return lines


def evidence(pool: Pool) -> dict[str, tuple[float, float]]:
    """Means over modules and pairs, (honest, mixed)."""
    tables = pool.tables
    means = {
        "cosine": torch.stack([table.cosine for table in tables]).mean(0),
        "z": torch.stack([table.z for table in tables]).mean(0),
        "output": torch.stack([table.output for table in tables]).mean(0),
    }
    return {name: split(mean, pool.setting.kinds) for name, mean in means.items()}


def pair_row(title: str, found: dict[str, tuple[float, float]]) -> str:
    """One line of the second table."""
    cosine, z, output = found["cosine"], found["z"], found["output"]
    return (
        f"{title:32} {cosine[0]:10.4f}/{cosine[1]:9.4f} {z[0]:7.2f}/{z[1]:8.2f} "
        f"{output[0]:10.2f}/{output[1]:9.2f}"
    )


def main() -> None:
    """Command line."""
    parser = simulate.parser(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--draws", type=int, default=1, help="cohorts for each case and size")
    parser.add_argument("--quick", action="store_true", help="sizes up to 8")
    parser.add_argument("--pairs", action="store_true", help="only the second table")
    parser.add_argument("--json", type=Path, help="also write every cohort here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sizes = [] if options.pairs else [s for s in options.sizes if s <= 8 or not options.quick]
    by_case: dict[str, list[Found]] = defaultdict(list)
    pools: dict[str, dict[str, tuple[float, float]]] = {}
    rows: list[dict[str, Any]] = []
    told_of: list[tuple[int, float, Found]] = []
    if not options.pairs:
        print(HEADER)
    for setting in simulate.settings(options):
        pool = load_pool(setting, options.cache)
        if pool is None:
            continue
        pools[setting.name] = evidence(pool)
        cohorts = []
        for case, counts in cases(setting, sizes):
            for number in range(options.draws):
                found = judge(pool, draw(setting, counts, number))
                cohorts.append(found)
                by_case[case].append(found)
                told_of.append((setting.modules, pools[setting.name]["z"][0], found))
                told = {"exact": found.exact, "silent": found.silent}
                rows.append({"pool": setting.name, "case": case, **told, **asdict(found)})
        if cohorts:
            print(row(setting.name, cohorts), flush=True)
    for case, cohorts in by_case.items():
        print(row(f"all pools, {case}", cohorts))
    for line in target_lines(told_of):
        print(line)
    print(f"\n{PAIR_HEADER}")
    for name, means in pools.items():
        print(pair_row(name, means))
    if options.json:
        text = json.dumps({"pairs": pools, "cohorts": rows}, indent=1, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
