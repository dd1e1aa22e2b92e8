"""Hits, false flags and merge error on trained cohorts, beside rules that know more.

    python benchmarks/detection.py [--quick] [--pools ...] [--sizes 5 8 12 20 40] [--draws 2]

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
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import attacks
import cohorts
import peers
import torch
from cohorts import Member

import clair_cli

TRAINED = ("wrong", "random", "backdoor", "collude")
LEFT_OUT = ("contaminated", "duplicate")
SHARES = (0.2, 0.4)


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


def is_clear(members: Sequence[Member]) -> bool:
    """Whether the honest block stands out of all pairs by two standard errors."""
    bad = torch.tensor([one[3] for one in members])
    if not bool(bad.any()):
        return True
    tables = cohorts.cosines(cohorts.stack(members))
    mean, error = tables.mean(0), tables.std(0) / math.sqrt(len(tables))
    upper = torch.ones_like(mean, dtype=torch.bool).triu(1)
    honest, mixed = ~bad[:, None] & ~bad & upper, ~bad[:, None] & bad
    low, high = mean[honest].argmin(), mean[mixed].argmax()
    gap = mean[honest][low] - mean[mixed][high]
    return bool(gap > 2 * torch.hypot(error[honest][low], error[mixed][high]))


def judge(members: Sequence[Member], rows: Sequence[Tally]) -> None:
    """Judge and merge one cohort and add it to its rows."""
    clients = {name: (state, config) for name, state, config, _ in members}
    result = clair_cli.merge(clients, rank="full", dtype="float32", allow_undetermined=True)
    verdicts = {c.name: c.verdict for c in result.report.clients}
    weights = {c.name: c.weight for c in result.report.clients}
    good = [verdicts[name] for name, _, _, bad in members if not bad]
    bad = [verdicts[name] for name, _, _, bad in members if bad]
    points = peers.flatten(cohorts.stack(members))
    target = points[torch.tensor([not one[3] for one in members])].mean(0)
    share = torch.tensor([weights[one[0]] for one in members], dtype=points.dtype)
    errors = {
        "clair": peers.error(share @ points, target),
        "mean": peers.error(points.mean(0), target),
        "geomed": peers.error(peers.geometric_median(points), target),
    }
    if 0 < len(bad) < len(members) - 2:
        errors["krum"] = peers.error(peers.multi_krum(points, len(bad)), target)
    judged = result.report.cohort.outcome == "judged"
    hits = sum(v in LEFT_OUT for v in bad)
    exact = judged and hits == len(bad) and all(v == "benign" for v in good)
    clear = is_clear(members)
    for tally in rows:
        tally.cohorts += 1
        tally.clear += clear
        tally.exact += exact
        tally.missed_clear += clear and not (exact and errors["clair"] <= 0.05)
        tally.undetermined += not judged
        tally.bad += len(bad)
        tally.hits += hits
        tally.suspicious_bad += bad.count("suspicious")
        tally.honest += len(good)
        tally.false_flags += sum(v in LEFT_OUT for v in good)
        tally.suspicious_honest += good.count("suspicious")
        for name, value in errors.items():
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
            for name in attacks.ATTACKS:
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
    options = parser.parse_args()
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
