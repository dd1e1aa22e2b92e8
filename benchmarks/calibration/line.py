"""Is the test at the line of its size? How often honest clients are said to have less than LINE.

    python -m benchmarks.calibration.line [--seeds 0 2] [--draws 8] [--planted 400] [--json FILE]

Two tables of how many clients have a `p_line` below 0.05, 0.01 (the judge's ERROR_RATE) and 0.002,
of those that the cohort's group was asked about. A star marks a share above 1.5 of what it should
be, by more than two standard errors (binomial).

1. Honest clients of the pretrained model: random cohorts of 5 to 12 honest clients of one recipe
   and one population, clean or with bad ones of one kind besides (two fifths of all at most).
2. Planted clients at the line. In each of m modules 64 wide, client k is

       D_k = f_k sqrt(c) S + sqrt(1 - f_k^2 c) E_k

   with S common and E_k its own, both of norm one and rank 4, products of Gaussian factors. All
   have f = 1, or f of mean 1 and deviation 0.2, but one client with LINE of the typical f (the
   median, weighted by squares): its share is the error rate of the test. Here only the line is
   judged, no minorities are looked for.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.calibration.pools import Pool, cut, pretrained_pools
from benchmarks.pools.settings import KINDS
from benchmarks.pretrained.clients import SETTINGS
from clair_cli.maths.evidence.gather import Evidence, gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import FactorStack
from clair_cli.maths.judge.groups import find_groups
from clair_cli.maths.judge.pairs import pairs_of
from clair_cli.maths.judge.structure import find_structure
from clair_cli.maths.judge.thresholds import LINE

LEVELS = (0.05, 0.01, 0.002)
MOST = 1.5
SMALLEST, LARGEST = 5, 12
MOST_BAD = 0.4
WIDTH, PART_RANK = 64, 4
SPREAD = 0.2
# Members, modules, and the cosine of two members (c).
PLANTED = ((5, 28, 0.2), (8, 6, 0.2), (8, 28, 0.1), (8, 28, 0.4), (12, 6, 0.1), (12, 28, 0.05))
HEADER = f"{'':32} {'clients':>7} " + " ".join(f"{'< ' + str(level):>10}" for level in LEVELS)


def shares(values: Sequence[float]) -> list[float]:
    """Of the probabilities below each level."""
    return [sum(value < level for value in values) / max(1, len(values)) for level in LEVELS]


def row(title: str, values: Sequence[float]) -> str:
    """One line of a table: shares of the probabilities below each level."""
    cells = []
    for level, share in zip(LEVELS, shares(values), strict=True):
        error = 2 * math.sqrt(MOST * level * (1 - MOST * level) / max(1, len(values)))
        cells.append(f"{share:10.4f}{'*' if share > MOST * level + error else ' '}")
    return f"{title:32} {len(values):7} " + "".join(cells)


def cohorts(pool: Pool, draws: int) -> Iterator[tuple[str, list[int]]]:
    """Kind of the bad clients ("clean" without any) and members of random cohorts."""
    honest = pool.of("honest")
    for number in range(draws):
        chance = random.Random(f"{pool.name} {number}")
        for kind in ("clean", *KINDS):
            size = chance.randint(SMALLEST, min(LARGEST, len(honest)))
            bad = pool.of(kind)
            most = min(len(bad), int(size * MOST_BAD / (1 - MOST_BAD)))
            if kind != "clean" and not most:
                continue
            extra = chance.sample(bad, chance.randint(1, most)) if most else []
            yield kind, [*chance.sample(honest, size), *extra]


def pretrained(pool: Pool, draws: int) -> Iterator[tuple[str, float]]:
    """Kind of the bad clients and `p_line` of every honest client of every cohort."""
    for kind, members in cohorts(pool, draws):
        found = find_structure(cut(pool.evidence, members))
        if found.loadings is None:
            continue
        p = found.loadings.p_line
        yield from (
            (kind, float(p[i])) for i in found.distinct if pool.kinds[members[i]] == "honest"
        )


def planted(shares: Tensor, modules: int, cosine: float, generator: torch.Generator) -> Evidence:
    """Evidence of planted clients.

    Args:
        shares: f of every client, (n,).
        cosine: c, of two clients with f = 1.
    """
    n, rank = len(shares), PART_RANK

    def parts(count: int) -> tuple[Tensor, Tensor]:
        A = torch.randn(modules, count, rank, WIDTH, generator=generator, dtype=torch.float64)
        B = torch.randn(modules, count, WIDTH, rank, generator=generator, dtype=torch.float64)
        return A, B / torch.linalg.matrix_norm(B @ A)[..., None, None]

    (A, B), (own_A, own_B) = parts(1), parts(n)
    size = (shares * cosine**0.5)[:, None, None]
    both_A = torch.cat([A.expand(-1, n, -1, -1), own_A], dim=2).flatten(1, 2)
    both_B = torch.cat([size * B, (1 - size.square()).sqrt() * own_B], dim=3)
    scaling = torch.ones(modules, n, dtype=torch.float64)
    ranks = (2 * rank,) * n
    stack = FactorStack(both_A, both_B.permute(0, 2, 1, 3).flatten(2), scaling, ranks)
    return gather(grams(stack))


def at_the_line(n: int, modules: int, cosine: float, spread: float, rounds: int) -> Iterator[float]:
    """`p_line` of a client that has just LINE of what n others share."""
    generator = torch.Generator().manual_seed(n + 1000 * modules)
    for _ in range(rounds):
        normal = torch.randn(n, generator=generator, dtype=torch.float64)
        shares = (1.0 + spread * normal).clamp(0.5, 1.5)
        shares_and_low = torch.cat([shares, LINE * typical(shares)])
        evidence = planted(shares_and_low, modules, cosine, generator)
        found = find_groups(pairs_of(evidence), None, range(n + 1))
        if found:
            yield float(found[0].loadings.p_line[n])


def typical(shares: Tensor) -> Tensor:
    """What the judge calls typical: the median of shares weighted by their squares, (1,)."""
    ordered = shares.sort().values
    weight = ordered.square().cumsum(0)
    return ordered[(weight >= weight[-1] / 2).nonzero()[0]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--draws", type=int, default=8, help="cohorts of each pool and kind")
    parser.add_argument("--planted", type=int, default=400, help="rounds of each planted case")
    parser.add_argument("--json", type=Path, help="also write the shares here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    tables: dict[str, list[tuple[str, list[float]]]] = {"honest": [], "planted": []}
    everything: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name, pool in pretrained_pools(seed).items():
            if len(SETTINGS[name].groups) > 1 or len(pool.of("honest")) < SMALLEST:
                continue
            values: list[float] = []
            for kind, p in pretrained(pool, options.draws):
                values.append(p)
                everything.setdefault(kind, []).append(p)
            tables["honest"].append((f"seed {seed}, {name}", values))
            print(row(*tables["honest"][-1]), flush=True)
    for kind, values in everything.items():
        print(row(f"all, {kind}", values))
    print(f"\n{HEADER}")
    for n, modules, cosine in PLANTED:
        for spread in (0.0, SPREAD):
            values = list(at_the_line(n, modules, cosine, spread, options.planted))
            title = f"{n} and one, m{modules}, c {cosine:g}, +-{spread:g}"
            tables["planted"].append((title, values))
            print(row(title, values), flush=True)
    if options.json:
        found = {
            kind: [[title, len(values), *shares(values)] for title, values in table]
            for kind, table in tables.items()
        }
        text = json.dumps({"levels": LEVELS, **found}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
