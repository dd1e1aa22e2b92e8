"""Every attack that needs no training on several cohorts: four numbers a cell, and a bound.

    python -m benchmarks.attacks.matrix [--quick] [--json PATH]
    python -m benchmarks.attacks.matrix --attacks alie-1.5 dba --pools gpt-own-s1 --sizes 12

A cell is an attack, a pool, a cohort size, a share of bad clients and a setting: ``homogeneous``
has benign clients only, ``heterogeneous`` has one honest client among them that shares half of
its data with nobody (smallest size only). A clean cohort's last clients become the attackers.
Backdoor attacks aim at the mean of the pool's trained backdoored clients, cut to rank 8.

Errors are relative distances to the mean of the truly benign. `clair` counts what it merges by
default: an undetermined cohort is not merged, and is not in its column. The best peer is the best
of all in `peers.PEERS`, in that cell: no single rule is that good, and some are told the true
number of bad clients. A cell is *clear* if the smallest benign-benign similarity lies above the
largest mixed one by two standard errors. It is *beaten* if it is undetermined or more than 0.02
behind the best peer, and *lost* if it is clear and beaten or more than 0.05 off.

Columns: cells; clear, undetermined, lost, beaten ones; bad clients left out; suspicious ones;
honest clients left out; suspicious ones; largest error of clair, of the plain mean, of the best
peer; largest error of clair over the plain mean's in the same cell: the bound on influence.

factors-* leave the delta weight as it is: these clients count as honest. copy-* and mimic send an
honest client's update: whichever of the two is called the duplicate, the merge is the same.
Attackers that start from their own update (scale, hidden, dba, collude, config) carry what an
honest client would: keeping them costs about a third here even if they added nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.attacks import attacks, rounds
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member

POOLS = ("gpt-same-s0", "gpt-own-s1", "llama-own-s0", "gpt-own-w9k40-s0")
SIZES = (12, 20)
SHARES = (0.2, 0.4)
SETTINGS = ("homogeneous", "heterogeneous")
NEAR_MEAN, NEAR_PEER = 0.05, 0.02
NO_EFFECT = 1e-3


@dataclass(frozen=True)
class Cell:
    """One attack on one cohort."""

    attack: str
    pool: str
    size: int
    share: float
    setting: str
    found: rounds.Round

    @property
    def best(self) -> tuple[float, str]:
        """Smallest error of a peer and its name."""
        return min((error, name) for name, error in self.found.peer_errors.items())

    @property
    def judged(self) -> bool:
        """Whether there is a verdict, and so a merge by default."""
        return self.found.outcome == "judged"

    @property
    def beaten(self) -> bool:
        """Whether a peer is clearly better, or there is no merge at all."""
        return not (self.judged and self.found.error <= self.best[0] + NEAR_PEER)

    @property
    def lost(self) -> bool:
        """Whether a clear cell is not as the issue of this table wants it."""
        return self.found.clear and (self.beaten or not self.found.error <= NEAR_MEAN)

    @property
    def units(self) -> float:
        """Error in units of the plain mean's."""
        plain = self.found.peer_errors["mean"]
        return self.found.error / plain if plain > NO_EFFECT else 0.0

    def numbers(self) -> dict[str, Any]:
        """The cell as plain values; None where a number is infinite."""
        found = self.found
        return {
            "attack": self.attack, "pool": self.pool, "size": self.size, "share": self.share,
            "setting": self.setting, "outcome": found.outcome, "honest": found.honest,
            "bad": found.bad, "hits": found.hits, "suspicious_bad": found.suspicious_bad,
            "false_flags": found.false_flags, "suspicious_honest": found.suspicious_honest,
            "clear": found.clear, "lost": self.lost, "beaten": self.beaten,
            "error": number(found.error), "best_peer": self.best[1],
            "peers": {name: number(error) for name, error in found.peer_errors.items()},
        }  # fmt: skip


def number(value: float) -> float | None:
    """Six decimals for the JSON file; infinity has no number there."""
    return round(value, 6) if math.isfinite(value) else None


def direction(pool: Path) -> attacks.Deltas:
    """Mean of the pool's backdoored clients, cut to `attacks.RANK`: module to (out, in)."""
    count = len(list(pool.glob("backdoor-[0-9]*")))
    trained = cohorts.stack(cohorts.cohort(pool, 0, {"backdoor": count}))
    result = {}
    for name, one in trained.items():
        b, a = attacks.factors(one.mean(0))
        result[name] = b[:, : attacks.RANK] @ a[: attacks.RANK]
    return result


def clean(pool: Path, size: int, setting: str, draw: int) -> list[Member]:
    """Clean cohort; with a partly overlapping client it comes second, so that it stays honest."""
    if setting == "homogeneous":
        return cohorts.cohort(pool, size, draw=draw)
    members = cohorts.cohort(pool, size - 1, partial=1, draw=draw)
    return [members[0], members[-1], *members[1:-1]]


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, pool by pool."""
    for name in options.pools:
        pool = options.cache / name
        aim = direction(pool)
        for size in options.sizes:
            settings = SETTINGS[: 1 if options.quick or size > min(options.sizes) else 2]
            for setting in settings:
                members = clean(pool, size, setting, options.draw)
                for share in SHARES[-1:] if options.quick else SHARES:
                    for attack in options.attacks:
                        made = attacks.attacked(
                            members, attack, int(size * share), options.draw, options.rank, aim
                        )
                        found = rounds.judged(made, peers.PEERS)
                        yield Cell(attack, name, size, share, setting, found)


@dataclass(frozen=True)
class Row:
    """One attack over all its cells: sums and largest numbers."""

    attack: str
    cells: Sequence[Cell]

    def total(self, name: str) -> int:
        """Sum of a number of `rounds.Round`."""
        return sum(getattr(cell.found, name) for cell in self.cells)

    def numbers(self) -> dict[str, Any]:
        """The row as plain values."""
        merged = [cell for cell in self.cells if cell.judged]
        best = Counter(cell.best[1] for cell in self.cells)
        return {
            "attack": self.attack,
            "cells": len(self.cells),
            "clear": self.total("clear"),
            "undetermined": len(self.cells) - len(merged),
            "lost": sum(cell.lost for cell in self.cells),
            "beaten": sum(cell.beaten for cell in self.cells),
            **{name: self.total(name) for name in (
                "hits", "bad", "suspicious_bad", "false_flags", "honest", "suspicious_honest",
            )},
            "error": number(max((cell.found.error for cell in merged), default=0.0)),
            "mean": number(max(cell.found.peer_errors["mean"] for cell in self.cells)),
            "best": number(max(cell.best[0] for cell in self.cells)),
            "best_peer": min(best, key=lambda name: (-best[name], name)),
            "units_of_mean": number(max((cell.units for cell in merged), default=0.0)),
        }  # fmt: skip

    def line(self) -> str:
        """The row as text."""
        n = self.numbers()
        return (
            f"{n['attack']:19} {n['cells']:5} {n['clear']:5} {n['undetermined']:5} {n['lost']:4} "
            f"{n['beaten']:6} {n['hits']:5}/{n['bad']:<4} {n['suspicious_bad']:4} "
            f"{n['false_flags']:5}/{n['honest']:<5} {n['suspicious_honest']:4} "
            f"{shown(n['error'])} {shown(n['mean'])} {shown(n['best'])} "
            f"{shown(n['units_of_mean'])} {n['best_peer']}"
        )


def shown(value: float | None) -> str:
    """A number in seven columns."""
    if value is None:
        return f"{'inf':>7}"
    return f"{value:7.3f}" if value < 1000 else f"{value:7.1e}"


HEADER = (
    f"{'attack':19} {'cells':>5} {'clear':>5} {'undet':>5} {'lost':>4} {'beaten':>6} "
    f"{'hits/bad':>10} {'susp':>4} {'false/honest':>11} {'susp':>4} {'clair':>7} {'mean':>7} "
    f"{'best':>7} {'x mean':>7} best peer"
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", nargs="+", default=list(POOLS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--attacks", nargs="+", choices=attacks.NAMES, default=list(attacks.NAMES),
                        metavar="NAME")  # fmt: skip
    parser.add_argument("--rank", type=int, help="of attackers' adapters; default: what they need")
    parser.add_argument("--draw", type=int, default=1, help="which clients of the pool")
    parser.add_argument("--quick", action="store_true", help="one pool, 12 clients, 40 %% bad")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=cohorts.CACHE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.quick:
        options.pools, options.sizes = options.pools[1:2] or options.pools, [12]
    found = list(cells(options))
    rows = [Row(name, [c for c in found if c.attack == name]) for name in options.attacks]
    print(HEADER)
    for row in rows:
        print(row.line())
    print("\nlost cells")
    for cell in (cell for cell in found if cell.lost):
        print(
            f"{cell.attack:19} {cell.pool:17} {cell.size:2} {cell.share:.1f} {cell.setting:13} "
            f"{cell.found.outcome:12} hits {cell.found.hits}/{cell.found.bad}, false "
            f"{cell.found.false_flags}, suspicious {cell.found.suspicious_honest}, error "
            f"{cell.found.error:.3f}, {cell.best[1]} {cell.best[0]:.3f}"
        )
    if options.json:
        numbers = {
            "cells": [cell.numbers() for cell in found], "rows": [row.numbers() for row in rows]
        }  # fmt: skip
        text = json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
