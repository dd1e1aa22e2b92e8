"""Attacks that need no training, made on top of a clean cohort: the point of import.

An attack of ``ATTACKS`` takes the delta weights of all clean clients and the number of bad ones
and returns the attackers' delta weights (`attacks_base`); one of ``FILES`` takes and returns
members (`attacks_files`). `attacked` makes a cohort with either. ``BASIC`` are the ones that
detection.py runs. What they are: `attacks_simple` (signs, sizes, noise, subspaces),
`attacks_optimised` (strength computed from the honest ones), `attacks_backdoor` (a direction to
be put into the merge), `attacks_files` (numbers, configuration, factors, extra tensors).
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.attacks.backdoor import BACKDOOR, HIDDEN
from benchmarks.attacks.base import (
    RANK,
    Attack,
    Deltas,
    as_lora,
    deltas_of,
    factors,
    low_rank,
    matched,
    median_norm,
    normal,
    orthonormal,
    parted,
    points_of,
)
from benchmarks.attacks.files import FILES, FileAttack
from benchmarks.attacks.optimised import OPTIMISED, alie
from benchmarks.attacks.simple import SIMPLE, fresh, inside, mean_times, noisy, own_times
from benchmarks.copying.cohorts import Member, stack
from benchmarks.copying.task import seeded

__all__ = [
    "ATTACKS",
    "BACKDOOR",
    "BASIC",
    "FILES",
    "NAMES",
    "RANK",
    "Attack",
    "Deltas",
    "FileAttack",
    "alie",
    "as_lora",
    "attacked",
    "deltas_of",
    "factors",
    "fresh",
    "inside",
    "low_rank",
    "matched",
    "mean_times",
    "median_norm",
    "noisy",
    "normal",
    "orthonormal",
    "own_times",
    "parted",
    "points_of",
    "stack",
]

ATTACKS: dict[str, Attack] = {**SIMPLE, **OPTIMISED, **BACKDOOR, **HIDDEN}
NAMES = (*ATTACKS, *FILES)
BASIC = (
    "flip-own", "flip-mean", "scale-10", "ipm-0.5", "ipm-2", "alie-1.5", "fresh",
    "fresh-colluding", "fresh-alike", "inside-random", "inside-reversed", "noise-own",
)  # fmt: skip


def attacked(
    members: Sequence[Member],
    name: str,
    bad: int,
    seed: int = 0,
    rank: int | None = None,
    direction: Deltas | None = None,
) -> list[Member]:
    """The clean cohort with its last ``bad`` members turned into attackers.

    Args:
        name: of ``NAMES``.
        rank: what the attackers' adapters are cut to; without it their numerical rank, which is
            that of the module for attacks on single coordinates.
        direction: what ``BACKDOOR`` attacks aim at, module to (out, in); random if None.
    """
    generator = seeded("attack", name, seed)
    if name in FILES:
        return FILES[name](members, bad, generator)
    options = {"direction": direction} if direction is not None and name in BACKDOOR else {}
    made = ATTACKS[name](stack(members), bad, generator, **options)
    kept = list(members[: len(members) - bad])
    for index in range(bad):
        deltas = {module: delta[index] for module, delta in made.items()}
        state, config = as_lora(deltas, members[len(kept)][2], rank)
        kept.append((f"{name}-{index:02d}", state, config, True))
    return kept
