"""Attackers who know everything, `clair` included: the largest damage that stays unnoticed.

    python -m benchmarks.adaptive.adaptive [--quick] [--pools ...] [--sizes 10 20] [--draws 1] \\
        [--json PATH]

Three tables. The first searches, for each attack, the strength at which the attackers move the
merge most while (a) all are `benign`, (b) none is left out, (c) whatever is said of them. The
second lets colluders grow in number until the cohort is theirs; the third has an honest client
framed. Verdicts and weights are those of `clair_cli.inspect` with the defaults of the command
line, damage is ||merged - honest mean|| / ||honest mean|| on exact delta weights. Multi-Krum is
told the true number of attackers, and gets the same updates.

The bound on influence of an attack is the last table: the largest damage in any cohort.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.adaptive import framing, hijack
from benchmarks.adaptive.crafts import Scene, base, craft, direction, make_scene, trained_harm
from benchmarks.adaptive.judge import crafted_clients, judge, peer_damages, trial
from benchmarks.adaptive.search import BENIGN, FLAGGED, MERGED, Search, Trial, geometric
from benchmarks.attacks.attacks import Deltas
from benchmarks.copying import cohorts

POOLS = ("gpt-same-s0", "gpt-own-s1", "llama-own-s0")
SHARES = (0.2, 0.4)
GRID = geometric(0.1, 4.0, 9)
HALVINGS = 3
# (direction, base) of every attack that is searched.
ATTACKS = (
    ("reverse", "own"),
    ("deviation", "own"),
    ("inside", "own"),
    ("inside", "mean"),
    ("strange", "own"),
    ("strange", "mean"),
    ("strange-half", "own"),
    ("strange-half", "mean"),
    ("strange-half", "mean-twice"),
    ("strange-together", "own"),
    ("against-one", "own"),
    ("backdoor", "own"),
    ("backdoor", "mean"),
)
QUICK = (("reverse", "own"), ("strange", "mean"), ("against-one", "own"), ("backdoor", "own"))


@dataclass(frozen=True)
class Found:
    """One attack on one cohort.

    Attributes:
        unnoticed, merged, any: the worst trials of levels BENIGN, MERGED and FLAGGED, or None.
        honest: damage had the attackers sent their honest updates, all of them merged.
        peers: what the updates of `unnoticed` (else of `merged`) do to other rules; empty if
            neither exists.
    """

    attack: str
    pool: str
    size: int
    bad: int
    draw: int
    unnoticed: Trial | None
    merged: Trial | None
    any: Trial | None
    honest: float
    peers: dict[str, float]


def seek(scene: Scene, towards_name: str, base_name: str, grid: Sequence[float]) -> Search:
    """Every trial that was needed for one attack on one cohort."""
    towards, start = direction(scene, towards_name), base(scene, base_name)

    def oracle(gamma: float) -> Trial:
        attackers = crafted_clients(craft(scene, start, towards, gamma), scene.members[0])
        judged = judge(scene.members[: -scene.bad], attackers)
        return trial(judged, gamma, towards)

    search = Search(oracle, grid, HALVINGS)
    search.worst(BENIGN)
    search.worst(MERGED)
    return search


def points(scene: Scene, made: Deltas) -> torch.Tensor:
    """Honest and crafted updates, (K, D), float64."""
    return torch.cat([peers.flatten(scene.honest), peers.flatten(made)])


def attack(
    scene: Scene, pool: str, draw: int, names: tuple[str, str], grid: Sequence[float]
) -> Found:
    """Search one attack on one cohort, and hold other rules against the same updates."""
    search = seek(scene, *names, grid)
    unnoticed, merged, most = (search.worst(level) for level in (BENIGN, MERGED, FLAGGED))
    rules: dict[str, float] = {}
    worst = unnoticed or merged
    if worst is not None:
        made = craft(scene, base(scene, names[1]), direction(scene, names[0]), worst.gamma)
        sent = cohorts.stack(crafted_clients(made, scene.members[0]))
        rules = peer_damages(points(scene, sent), scene.bad)
    together = points(scene, scene.own)
    honest = peers.error(together.mean(0), together[: -scene.bad].mean(0))
    return Found(
        " ".join(names), pool, scene.size, scene.bad, draw, unnoticed, merged, most, honest, rules
    )


def searched(
    pools: Sequence[Path], sizes: Sequence[int], draws: int, quick: bool
) -> Iterator[Found]:
    """All attacks on all cohorts."""
    for pool in pools:
        harm = trained_harm(pool)
        for size in sizes:
            for draw in range(1, draws + 1):
                members = cohorts.cohort(pool, size, draw=draw)
                for share in SHARES[:1] if quick else SHARES:
                    scene = make_scene(members, max(1, int(size * share)), harm, seed=draw)
                    for names in QUICK if quick else ATTACKS:
                        yield attack(scene, pool.name, draw, names, GRID[1::2] if quick else GRID)


def framed(
    pools: Sequence[Path], sizes: Sequence[int], draws: int, quick: bool
) -> Iterator[framing.Framed]:
    """All framings of an honest client, and of one whose data overlaps the others' by half."""
    for pool in pools:
        for size in sizes:
            for draw in range(1, draws + 1):
                for bad in sorted({1, int(0.2 * size), int(0.4 * size)})[: 2 if quick else None]:
                    clean = cohorts.cohort(pool, size, draw=draw)
                    order = framing.weakest_first(clean, cohorts.stack(clean), bad)
                    mixed = cohorts.cohort(pool, size - 1, partial=1, draw=draw)
                    cases = {"honest": [clean[k] for k in order], "partial": mixed[-1:] + mixed}
                    for who, members in cases.items():
                        for name in framing.FRAMINGS:
                            yield framing.frame(
                                name, members[:size], bad, pool=pool.name, who=who, draw=draw
                            )


HEADER = (
    f"{'attack':26} {'K':>3} {'m':>3} {'gamma':>6} | {'benign':>7} {'merged':>7} {'any':>7} "
    f"{'along':>7} | {'honest':>7} {'mean':>7} {'geomed':>7} {'krum':>7} {'accused':>8}  verdicts"
)


def damage(one: Trial | None) -> float:
    """Of a trial, 0 if there is none."""
    return 0.0 if one is None else one.damage


def line(rows: Sequence[Found]) -> str:
    """One attack, size and number of attackers: the worst of its cohorts.

    gamma, `along` (the part of the damage along the attack's direction) and the peers belong to
    the cohort with the largest `benign` damage (`merged` where nobody is benign).
    """
    worst = max(rows, key=lambda r: (damage(r.unnoticed), damage(r.merged)))
    shown = worst.unnoticed or worst.merged
    each = [max(damage(getattr(r, k)) for r in rows) for k in ("unnoticed", "merged", "any")]
    trials = [t for r in rows for t in (r.unnoticed, r.merged, r.any) if t is not None]
    rules = [worst.peers.get(k) for k in ("mean", "geometric-median", "multi-krum")]
    cells = [f"{value:7.3f}" for value in each]
    cells.append("      -" if shown is None else f"{shown.shift:7.3f}")
    others = [f"{max(r.honest for r in rows):7.3f}"]
    others += ["      -" if value is None else f"{value:7.3f}" for value in rules]
    return (
        f"{worst.attack:26} {worst.size:3} {worst.bad:3} "
        f"{'     -' if shown is None else f'{shown.gamma:6.2f}'} | {' '.join(cells)} | "
        f"{' '.join(others)} {max((t.accused for t in trials), default=0):8}  "
        f"{', '.join(sorted({t.verdicts for t in trials}))}"
    )


def bounds(rows: Sequence[Found]) -> Iterator[str]:
    """Largest damage of each attack by share of attackers, over all cohorts."""
    yield (
        f"{'bound on influence':26} {'share':>5} {'benign':>7} {'merged':>7} {'any':>7} {'mean':>7}"
    )
    for name, share in sorted({(r.attack, round(r.bad / r.size, 2)) for r in rows}):
        some = [r for r in rows if (r.attack, round(r.bad / r.size, 2)) == (name, share)]
        each = [max(damage(getattr(r, k)) for r in some) for k in ("unnoticed", "merged", "any")]
        each.append(max(r.peers.get("mean", 0.0) for r in some))
        yield f"{name:26} {share:5.2f} " + " ".join(f"{value:7.3f}" for value in each)


def table_of_attacks(found: Iterable[Found]) -> list[Found]:
    """Print the first table; returns its cohorts in the table's order."""
    cells: dict[tuple[str, int, int], list[Found]] = defaultdict(list)
    for one in found:
        cells[one.attack, one.size, one.bad].append(one)
    print(HEADER)
    for key in sorted(cells):
        print(line(cells[key]), flush=True)
    return [one for key in sorted(cells) for one in cells[key]]


def table_of_hijacks(pools: Sequence[Path], sizes: Sequence[int]) -> list[hijack.Breakdown]:
    """Print the second table."""
    print("\n" + hijack.HEADER)
    risen = []
    for kind in (*hijack.KINDS, hijack.TRAINED):
        for pool in pools:
            for size in sizes:
                risen.append(hijack.rise(pool, size, kind, draw=1))
                print(hijack.line(risen[-1]), flush=True)
    return risen


def table_of_framings(found: Iterable[framing.Framed]) -> list[framing.Framed]:
    """Print the third table; returns its cohorts in the table's order."""
    cells: dict[tuple[str, str, int, int], list[framing.Framed]] = defaultdict(list)
    for one in found:
        cells[one.framing, one.who, one.size, one.bad].append(one)
    print("\n" + framing.HEADER)
    for key in sorted(cells):
        print(framing.line(cells[key]), flush=True)
    return [one for key in sorted(cells) for one in cells[key]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", default=list(POOLS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--hijack-sizes", type=int, nargs="+", default=[8, 12, 20])
    parser.add_argument("--draws", type=int, default=1, help="cohorts of each pool per cell")
    parser.add_argument("--quick", action="store_true", help="one or two pools, few attacks")
    parser.add_argument("--cache", type=Path, default=cohorts.CACHE)
    parser.add_argument("--json", type=Path, help="also write every number here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quick = options.quick
    if quick:
        options.pools, options.sizes = options.pools[1:], [10]
        options.hijack_sizes, options.draws = [8], 1
    pools = [options.cache / name for name in options.pools]
    rows = table_of_attacks(searched(pools, options.sizes, options.draws, quick))
    few = pools[:1] if quick else pools
    risen = table_of_hijacks(few, options.hijack_sizes)
    victims = table_of_framings(framed(few, options.sizes, options.draws, quick))
    print()
    for text in bounds(rows):
        print(text)
    if options.json is not None:
        found = {
            "attacks": [asdict(one) for one in rows],
            "hijack": [hijack.as_json(one) for one in risen],
            "framing": [framing.as_json(one) for one in victims],
        }
        text = json.dumps(found, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
