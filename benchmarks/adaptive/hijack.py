"""Colluders with one strong common update: from how many on is the cohort theirs?

Each sends N * unit(sqrt(c) P + sqrt(1 - c) Q_j) in every module: P is common, Q_j its own, both
random of rank 8, N the honest median norm, and c the cosine between two of them. Their number m
rises until the honest clients are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.adaptive.crafts import Scene, make_scene, strange, strange_together, typical, unit
from benchmarks.adaptive.judge import Judged, crafted_clients, judge
from benchmarks.attacks.attacks import Deltas
from benchmarks.copying import cohorts
from benchmarks.copying.cohorts import Member
from benchmarks.copying.task import seeded

# (cosine between two colluders, or None for that between honest ones; norm over the median).
KINDS: dict[str, tuple[float | None, float]] = {
    "tight": (0.9, 1.0),
    "tight-loud": (0.9, 2.4),
    "as-alike": (None, 1.0),
}
TRAINED = "trained"


@dataclass(frozen=True)
class Breakdown:
    """One rising number of colluders.

    Attributes:
        size: clients in all, K; kind: of `KINDS`, or TRAINED.
        outcomes: for m = 1, 2, ..: "found" (all left out, nobody accused), "undetermined",
            "merged" (some colluder has a weight, the merge is nearer to the honest mean) or
            "theirs" (nearer to the colluders').
        damages: of the merge, relative to the honest mean; 0 where nothing is merged.
        accused: honest clients left out.
    """

    pool: str
    size: int
    kind: str
    draw: int
    outcomes: tuple[str, ...]
    damages: tuple[float, ...]
    accused: tuple[int, ...]

    def first(self, *outcomes: str) -> int | None:
        """Smallest m with one of these outcomes."""
        found = [m for m, one in enumerate(self.outcomes, 1) if one in outcomes]
        return found[0] if found else None

    def count(self, outcome: str) -> int:
        """How many m have this outcome."""
        return self.outcomes.count(outcome)


def honest_level(scene: Scene) -> float:
    """Mean cosine between two honest clients, over pairs and modules."""
    levels = []
    for delta in scene.honest.values():
        flat = unit(delta).flatten(1)
        table, count = flat @ flat.T, len(flat)
        levels.append(float((table.sum() - count) / (count * (count - 1))))
    return max(0.0, sum(levels) / len(levels))


def colluders(scene: Scene, cosine: float, size: float) -> Deltas:
    """Crafted updates, module to (m, out, in)."""
    common = strange_together(scene, seeded("adaptive-hijack", scene.seed))
    own = strange(scene, seeded("adaptive-hijack-own", scene.seed))
    return {
        n: size * typical(h) * unit(cosine**0.5 * common[n] + (1 - cosine) ** 0.5 * own[n])
        for n, h in scene.honest.items()
    }


def outcome(judged: Judged) -> str:
    """Of `Breakdown.outcomes`."""
    if judged.outcome != "judged":
        return "undetermined"
    merged = judged.merged
    bad = judged.points[judged.honest :].mean(0)
    if merged is not None and (merged - bad).norm() < (merged - judged.target).norm():
        return "theirs"
    out = all(weight == 0 for weight in judged.weights[judged.honest :])
    return "found" if out and not judged.accused else "merged"


def rise(pool: Path, size: int, kind: str, draw: int, seed: int = 0) -> Breakdown:
    """All numbers of colluders from 1 to K - 2 (trained ones: as many as the pool has)."""
    most = size - 2
    if kind == TRAINED:
        most = min(most, len(list(pool.glob("collude-[0-9]*"))))
    found: list[Judged] = []
    for bad in range(1, most + 1):
        attackers: Sequence[Member]
        if kind == TRAINED:
            members = cohorts.cohort(pool, size - bad, {"collude": bad}, draw=draw)
            honest, attackers = members[:-bad], members[-bad:]
        else:
            members = cohorts.cohort(pool, size, draw=draw)
            scene = make_scene(members, bad, seed=seed)
            cosine, loud = KINDS[kind]
            made = colluders(scene, honest_level(scene) if cosine is None else cosine, loud)
            honest, attackers = members[:-bad], crafted_clients(made, members[0])
        found.append(judge(honest, attackers))
    return Breakdown(
        pool.name,
        size,
        kind,
        draw,
        tuple(outcome(one) for one in found),
        tuple(one.damage for one in found),
        tuple(one.accused for one in found),
    )


HEADER = (
    f"{'hijack':12} {'pool':14} {'K':>3} {'all found':>10} {'undetermined':>13} "
    f"{'first merged':>13} {'first theirs':>13} {'largest damage':>15} {'accused':>8}"
)


def line(one: Breakdown) -> str:
    """One line of the table; numbers of colluders, with their share of K."""

    def share(m: int | None) -> str:
        return "never" if m is None else f"{m} ({m / one.size:.2f})"

    unsure = [m for m, found in enumerate(one.outcomes, 1) if found == "undetermined"]
    span = f"{unsure[0]} to {unsure[-1]}" if unsure else "never"
    missed = one.first("undetermined", "merged", "theirs")
    clear = len(one.outcomes) if missed is None else missed - 1
    return (
        f"{one.kind:12} {one.pool:14} {one.size:3} {f'up to {clear}':>10} {span:>13} "
        f"{share(one.first('merged')):>13} {share(one.first('theirs')):>13} "
        f"{max(one.damages):15.3f} {max(one.accused):8}"
    )


def as_json(one: Breakdown) -> dict[str, object]:
    """The same for a file."""
    return asdict(one)
