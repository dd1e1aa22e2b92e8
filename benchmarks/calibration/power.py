"""Is the stated power true? Stated probability beside how often an unrelated client is found.

    python -m benchmarks.calibration.power [--widths 64 256] [--modules 6 28 112] [--draws 80] \\
        [--every 8] [--json FILE]

Cohorts of 4 to 12 honest clients of a simulated pool, half of them with bad clients besides (one
kind, at most two fifths of the cohort). The judge states a power for the round, and one for each
client: the probability that it would be found below the line if it were unrelated to the others.
Then one honest client of the group is replaced by an unrelated one (`lone`), the cohort is judged
anew, and it is seen whether that one is below the line. Rounds without a verdict count too. Cohorts
in which no three clients have anything in common state nothing, and are left out.

The last line is of some of these cohorts only, ``--every`` so many: those in which each unrelated
client of the pool is found in that place (13 of 13: the true power may be above 0.99), and how
many of these are judged.

Every table has bins of equal count. Columns: the bin's number of cohorts, its mean stated power,
the measured frequency, two standard errors of that (binomial), and whether stated and measured are
within 0.05, or within those two standard errors where they are more.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.calibration.pools import Pool, cut, width_pools
from benchmarks.width import simulate
from clair_cli.maths.judge.structure import find_structure

SMALLEST, LARGEST = 4, 12
MOST_BAD = 0.4
LEAST_BIN = 300
NEAR = 0.05
HEADER = f"{'':24} {'cohorts':>7} {'stated':>7} {'found':>7} {'+-':>6}"


@dataclass(frozen=True)
class Trial:
    """One unrelated client in one cohort.

    Attributes:
        setting: of the pool.
        round_power: stated for the round, with the honest client.
        client_power: stated for the honest client that is then replaced.
        found: whether the unrelated client in its place is below the line.
        sure: whether the round had power, with the honest client.
        all_found: whether each unrelated client of the pool is found there; None if not looked at.
    """

    setting: simulate.Setting
    round_power: float
    client_power: float
    found: bool
    sure: bool
    all_found: bool | None = None


def draw(pool: Pool, chance: random.Random) -> tuple[list[int], int]:
    """A random cohort, honest clients first, and an unrelated client that is not in it."""
    honest = chance.sample(pool.of("honest"), chance.randint(SMALLEST, LARGEST))
    lone, *others = chance.sample(pool.of("lone"), len(pool.of("lone")))
    bad: list[int] = []
    most = int(len(honest) * MOST_BAD / (1 - MOST_BAD))
    if chance.random() < 0.5:
        kind = chance.choice(["lone", "noise", "other"])
        of_kind = others if kind == "lone" else pool.of(kind)
        bad = chance.sample(of_kind, min(len(of_kind), chance.randint(1, most)))
    return [*honest, *bad], lone


def is_found(pool: Pool, cohort: Sequence[int], place: int, lone: int) -> bool:
    """Whether an unrelated client in some place is below the line."""
    after = find_structure(cut(pool.evidence, [*cohort[:place], lone, *cohort[place + 1 :]]))
    return bool(after.groups) and after.groups[0].loadings.is_below(place)


def trial(
    setting: simulate.Setting, pool: Pool, chance: random.Random, every: bool = False
) -> Trial | None:
    """Stated power and what is found; None if the round states none.

    Args:
        every: whether to put each unrelated client there.
    """
    cohort, lone = draw(pool, chance)
    before = find_structure(cut(pool.evidence, cohort))
    honest = [i for i in before.group if pool.kinds[cohort[i]] == "honest"]
    if not honest:
        return None
    group, place = before.groups[0], chance.choice(honest)
    found = is_found(pool, cohort, place, lone)
    all_found = (
        found
        and every
        and all(
            is_found(pool, cohort, place, other) for other in set(pool.of("lone")) - {lone, *cohort}
        )
    )
    return Trial(
        setting, group.power, float(group.loadings.power[place]), found, group.is_sure,
        all_found if every else None,
    )  # fmt: skip


def bins(
    values: Sequence[tuple[float, bool]], least: int = LEAST_BIN
) -> list[list[tuple[float, bool]]]:
    """Stated powers with what was found, in order and in at most ten bins of equal count."""
    ordered = sorted(values)
    count = max(1, min(10, len(ordered) // least))
    edges = [round(i * len(ordered) / count) for i in range(count + 1)]
    return [ordered[a:b] for a, b in pairwise(edges)]


def measured(values: Sequence[tuple[float, bool]]) -> tuple[float, float, float]:
    """Mean stated power of a bin, measured frequency, and two standard errors of that."""
    stated = sum(value for value, _ in values) / len(values)
    found = sum(hit for _, hit in values) / len(values)
    return stated, found, 2 * math.sqrt(found * (1 - found) / len(values))


def row(title: str, values: Sequence[tuple[float, bool]]) -> str:
    """One line of a table."""
    stated, found, error = measured(values)
    verdict = "" if abs(stated - found) <= max(NEAR, error) else "  off"
    return f"{title:24} {len(values):7} {stated:7.3f} {found:7.3f} {error:6.3f}{verdict}"


def numbers(trials: Sequence[Trial]) -> dict[str, Any]:
    """The bins over all pools, for the figure: [cohorts, stated, found, two standard errors]."""
    kinds: dict[str, Callable[[Trial], float]] = {
        "round": lambda one: one.round_power, "client": lambda one: one.client_power,
    }  # fmt: skip
    return {
        kind: [
            [len(values), *measured(values)]
            for values in bins([(power(one), one.found) for one in trials])
        ]
        for kind, power in kinds.items()
    }


def table(title: str, trials: Sequence[Trial], power: Callable[[Trial], float]) -> None:
    """Print the bins of some trials."""
    for number, values in enumerate(bins([(power(one), one.found) for one in trials])):
        print(row("" if number else title, values))


def report(trials: Sequence[Trial]) -> None:
    """Print all tables."""
    print(HEADER)
    table("round", trials, lambda one: one.round_power)
    table("client", trials, lambda one: one.client_power)
    for sure, title in ((True, "rounds with power"), (False, "rounds without")):
        chosen = [(one.round_power, one.found) for one in trials if one.sure == sure]
        if chosen:
            print(row(title, chosen))
    for width, modules in sorted({(one.setting.width, one.setting.modules) for one in trials}):
        chosen_here = [
            o for o in trials if (o.setting.width, o.setting.modules) == (width, modules)
        ]
        table(f"round, d{width} m{modules}", chosen_here, lambda one: one.round_power)
    for init in sorted({one.setting.init for one in trials}):
        chosen_here = [one for one in trials if one.setting.init == init]
        table(f"round, lora_A {init}", chosen_here, lambda one: one.round_power)
    certain = [one.sure for one in trials if one.all_found]
    print(f"each unrelated client is found in {len(certain)}; of these {sum(certain)} are judged")


def main() -> None:
    """Command line."""
    parser = simulate.parser(__doc__.splitlines()[0])
    parser.set_defaults(modules=[6, 28, 112])
    parser.add_argument("--draws", type=int, default=80, help="cohorts of each pool")
    parser.add_argument("--every", type=int, default=8, help="look at all in one of so many")
    parser.add_argument("--json", type=Path, help="also write the bins here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials: list[Trial] = []
    for setting, pool in width_pools(options):
        for number in range(options.draws):
            chance = random.Random(f"{setting.name} {number}")
            one = trial(setting, pool, chance, number % options.every == 0)
            trials += [one] if one else []
    report(trials)
    if options.json:
        text = json.dumps(numbers(trials), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
