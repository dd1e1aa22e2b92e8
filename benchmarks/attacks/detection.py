"""Hits, false flags and merge error on trained cohorts, beside rules that know more.

    python -m benchmarks.attacks.detection [--quick] [--pools ...] [--sizes 5 8 12 20 40] \\
        [--draws 2]

Every cohort is judged and merged by `clair_cli.merge` on adapters in memory, with the defaults
of the command line (rank full, so that the error is that of the set, not of the truncation).
Errors are ||merged - mean of the truly benign|| / ||that mean|| on exact delta weights. `clear`
counts the cohorts whose smallest benign-benign similarity lies above the largest mixed one by
two standard errors; Multi-Krum is told the true number of bad clients.

A cohort of K clients with kind `wrong` at 0.4 has 0.6 K honest clients; attacks made on top of
clean cohorts replace the last clients. `clean` and `partial` cohorts have nobody bad: any flag
in them is a false one.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.attacks import attacks, rounds
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member
from clair_cli.workflow import batches

TRAINED = ("wrong", "random", "backdoor", "collude")
SHARES = (0.2, 0.4)
RULES: dict[str, rounds.Rule] = {
    "mean": lambda points, bad: peers.mean(points),
    "geomed": lambda points, bad: peers.geometric_median(points),
}


@dataclass
class Tally:
    """Sums over the cohorts of one row; errors are the largest seen."""

    cohorts: int = 0
    clear: int = 0
    exact: int = 0
    undetermined: int = 0
    bad: int = 0
    hits: int = 0
    suspicious_bad: int = 0
    honest: int = 0
    false_flags: int = 0
    suspicious_honest: int = 0
    missed_clear: int = 0
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def judge(members: Sequence[Member], rows: Sequence[Tally]) -> None:
    """Judge and merge one cohort and add it to its rows."""
    count = sum(one[3] for one in members)
    told = {"krum": peers.multi_krum} if 0 < count < len(members) - 2 else {}
    found = rounds.judged(members, {**RULES, **told})
    for tally in rows:
        tally.cohorts += 1
        tally.clear += found.clear
        tally.exact += found.exact
        tally.missed_clear += found.clear and not (found.exact and found.error <= 0.05)
        tally.undetermined += found.outcome != "judged"
        tally.bad += found.bad
        tally.hits += found.hits
        tally.suspicious_bad += found.suspicious_bad
        tally.honest += found.honest
        tally.false_flags += found.false_flags
        tally.suspicious_honest += found.suspicious_honest
        for name, value in {"clair": found.error, **found.peer_errors}.items():
            tally.errors[name].append(value)


def cases(pool: Path, size: int, draws: int) -> Iterator[tuple[str, int, list[Member]]]:
    """Cohorts of one size from one pool: (kind, bad clients, members)."""
    for draw in range(1, draws + 1):
        clean = cohorts.cohort(pool, size, draw=draw)
        yield "clean", 0, clean
        yield "partial", 0, cohorts.cohort(pool, size - 1, partial=1, draw=draw)
        for share in SHARES:
            for kind in TRAINED:
                bad = min(max(2, int(size * share)), cohorts.COUNTS[kind])
                yield kind, bad, cohorts.cohort(pool, size - bad, {kind: bad}, draw=draw)
            for name in attacks.BASIC:
                bad = max(1, int(size * share))
                yield name, bad, attacks.attacked(clean, name, bad, seed=draw)


def row(title: str, tally: Tally) -> str:
    """One line of the table."""
    worst = {name: max(values) for name, values in tally.errors.items()}
    krum = f"{worst['krum']:7.3f}" if "krum" in worst else f"{'-':>7}"
    return (
        f"{title:34} {tally.cohorts:4} {tally.clear:5} {tally.exact:5} {tally.missed_clear:5} "
        f"{tally.undetermined:5} {tally.hits:5}/{tally.bad:<5} {tally.suspicious_bad:4} "
        f"{tally.false_flags:5}/{tally.honest:<5} {tally.suspicious_honest:4} "
        f"{worst['clair']:7.3f} {worst['mean']:7.3f} {worst['geomed']:7.3f} {krum}"
    )


HEADER = (
    f"{'cohort':34} {'n':>4} {'clear':>5} {'exact':>5} {'miss':>5} {'undet':>5} "
    f"{'hits/bad':>11} {'susp':>4} {'false/honest':>11} {'susp':>4} "
    f"{'clair':>7} {'mean':>7} {'geomed':>7} {'krum':>7}"
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", help="default: all trained ones in the cache")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 8, 12, 20, 40])
    parser.add_argument("--draws", type=int, default=2, help="cohorts per cell")
    parser.add_argument("--quick", action="store_true", help="two pools, two sizes, one draw")
    parser.add_argument("--cache", type=Path, default=cohorts.CACHE)
    parser.add_argument(
        "--wide", action="store_true", help="judge all layers as those with more terms than width"
    )
    options = parser.parse_args()
    if options.wide:
        batches.is_overcomplete = lambda n_components, shape: True
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pools = options.pools or sorted(
        p.name for p in options.cache.glob("*-*-s*") if (p / "benign-00").exists()
    )
    if options.quick:
        pools, options.sizes, options.draws = pools[:2], [8, 12], 1
    by_kind: dict[str, Tally] = defaultdict(Tally)
    print(HEADER)
    for pool in pools:
        rows: dict[str, Tally] = defaultdict(Tally)
        for size in options.sizes:
            for kind, _, members in cases(options.cache / pool, size, options.draws):
                judge(members, [rows[kind], by_kind[kind]])
        for kind, tally in rows.items():
            print(row(f"{pool} {kind}", tally), flush=True)
    print(HEADER)
    for kind, tally in by_kind.items():
        print(row(f"all {kind}", tally))


if __name__ == "__main__":
    main()
