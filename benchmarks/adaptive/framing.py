"""Attackers who want an honest client left out: can they, and what does it do to the merge?

The victim is the honest client that is least like the other honest ones, or one whose data
overlaps theirs by half. Each framing has a strength; the one that is worst for the victim counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.adaptive.crafts import Scene, make_scene, strange, typical, unit
from benchmarks.adaptive.judge import Judged, crafted_clients, judge
from benchmarks.attacks.attacks import Deltas
from benchmarks.copying.cohorts import Member
from benchmarks.copying.task import seeded

# From harmless to worst for the victim.
ORDER = ("benign", "suspicious", "duplicate", "contaminated")
UNSURE = "undetermined"
# Cosine from which on two updates are the same one.
SAME = 0.999
# Strengths whose only purpose is another order of content: who comes first of equals is chance.
TRIES = (1.0, 1.001, 1.002, 1.003)


@dataclass(frozen=True)
class Framed:
    """The worst that one framing did to the victim.

    Attributes:
        victim: verdict of the victim, or "undetermined"; codes: of its reasons.
        weight: of the victim's update in the merge (its own and that of its equals) times K:
            1 is its fair share.
        attackers: their verdicts; accused: other honest clients left out.
        damage: of the merge, relative to the honest mean (victim included).
        at: the strength.
        unsure: whether some strength makes the whole cohort undetermined (of those tried: they
            stop at the first that leaves the victim out).
    """

    framing: str
    pool: str
    who: str
    size: int
    bad: int
    draw: int
    victim: str
    codes: str
    weight: float
    attackers: str
    accused: int
    damage: float
    at: float
    unsure: bool


Framing = Callable[[Scene, float], Deltas]


def _victim(scene: Scene) -> Deltas:
    return {name: honest[0] for name, honest in scene.honest.items()}


def _others(scene: Scene) -> Deltas:
    return {name: honest[1:].mean(0) for name, honest in scene.honest.items()}


def _for_all(scene: Scene, one: Mapping[str, Tensor]) -> Deltas:
    return {name: delta.expand(scene.bad, *delta.shape).clone() for name, delta in one.items()}


def nothing(scene: Scene, strength: float) -> Deltas:
    """Nobody attacks: what the verdict on the victim is without them."""
    return scene.own


def copies(scene: Scene, factor: float) -> Deltas:
    """The victim's own update times a factor (nearly the same one for each)."""
    made = _for_all(scene, _victim(scene))
    each = factor * (1 + 1e-4 * torch.arange(scene.bad, dtype=torch.float64))
    return {name: each[:, None, None] * delta for name, delta in made.items()}


def halo(scene: Scene, strength: float) -> Deltas:
    """The victim's update plus own noise: attackers and victim are to look like one group."""
    noise = strange(scene, seeded("framing-halo", scene.seed))
    victim = _for_all(scene, _victim(scene))
    return {n: victim[n] + strength * typical(h) * noise[n] for n, h in scene.honest.items()}


def halo_residual(scene: Scene, strength: float) -> Deltas:
    """The same around what sets the victim apart from the others: without their mean."""
    noise = strange(scene, seeded("framing-halo", scene.seed))
    victim, others = _victim(scene), _others(scene)
    return {
        n: typical(h) * (unit(victim[n] - others[n])[None] + strength * noise[n])
        for n, h in scene.honest.items()
    }


def half_flipped(scene: Scene, strength: float) -> Deltas:
    """The victim's update times -strength in every second module, plus a little own noise."""
    made = halo(scene, 0.2)
    return {n: made[n] * (-strength if i % 2 else 1.0) for i, n in enumerate(sorted(made))}


def push(scene: Scene, strength: float) -> Deltas:
    """The attacker's own update minus what sets the victim apart."""
    victim, others = _victim(scene), _others(scene)
    return {
        n: scene.own[n] - strength * typical(h) * unit(victim[n] - others[n])
        for n, h in scene.honest.items()
    }


def tighten(scene: Scene, strength: float) -> Deltas:
    """The others' mean and a share of the own residual: raises the level inside the group, next
    to which the victim looks unlike."""
    others = _others(scene)
    return {n: others[n] + strength * (scene.own[n] - h.mean(0)) for n, h in scene.honest.items()}


def tighten_away(scene: Scene, strength: float) -> Deltas:
    """The same, without what the victim shares with them."""
    made, victim = tighten(scene, 0.5), _victim(scene)
    found = {}
    for name, delta in made.items():
        line = unit(victim[name])
        part = (delta * line).sum((1, 2))[:, None, None] * line
        found[name] = delta - strength * part
    return found


FRAMINGS: dict[str, tuple[Framing, Sequence[float]]] = {
    "nothing": (nothing, (0.0,)),
    "copies": (copies, TRIES),
    "copies-2.4": (copies, tuple(2.4 * t for t in TRIES)),
    "copies-10": (copies, tuple(10.0 * t for t in TRIES)),
    "halo": (halo, (0.1, 0.3, 0.6, 1.0)),
    "halo-residual": (halo_residual, (0.1, 0.3, 0.6, 1.0)),
    "half-flipped": (half_flipped, (0.5, 1.0, 2.0)),
    "push": (push, (0.3, 0.6, 1.0, 1.5)),
    "tighten": (tighten, (0.2, 0.4, 0.7)),
    "tighten-away": (tighten_away, (0.5, 1.0)),
}


def weakest_first(members: Sequence[Member], deltas: Mapping[str, Tensor], bad: int) -> list[int]:
    """Indices of all members, the honest one least like the other honest ones first."""
    count = len(members) - bad
    flat = [unit(delta[:count]).flatten(1) for delta in deltas.values()]
    total = torch.stack([one @ one.T for one in flat]).mean(0).sum(1)
    first = int(total.argmin())
    return [first, *(k for k in range(len(members)) if k != first)]


def share_of_victim(judged: Judged) -> float:
    """Weight of the victim and of all that equal it up to a factor, times K."""
    flat = torch.nn.functional.normalize(judged.points, dim=1)
    same = flat @ flat[0] > SAME
    return float(torch.tensor(judged.weights)[same].sum()) * len(judged.weights)


def _badness(judged: Judged) -> tuple[float, int]:
    """Least weight first, then the worst verdict; an undetermined cohort is another matter."""
    if judged.outcome != "judged":
        return -torch.inf, 0
    return -round(share_of_victim(judged), 6), ORDER.index(judged.verdicts[0])


def frame(
    framing: str, members: Sequence[Member], bad: int, *, pool: str, who: str, draw: int
) -> Framed:
    """The worst over the framing's strengths; the first of `members` is the victim."""
    scene = make_scene(members, bad, seed=draw)
    make, strengths = FRAMINGS[framing]
    found = []
    for strength in strengths:
        attackers = crafted_clients(make(scene, strength), members[0])
        found.append((judge(members[:-bad], attackers), strength))
        if _badness(found[-1][0]) >= (0.0, ORDER.index("duplicate")):
            break  # left out: it can't be worse
    worst, at = max(found, key=lambda pair: _badness(pair[0]))
    unsure = worst.outcome != "judged"
    return Framed(
        framing,
        pool,
        who,
        len(members),
        bad,
        draw,
        UNSURE if unsure else worst.verdicts[0],
        "" if unsure else worst.codes[0],
        share_of_victim(worst),
        UNSURE if unsure else worst.kinds,
        worst.accused - (not unsure and worst.verdicts[0] in ("contaminated", "duplicate")),
        worst.damage,
        at,
        any(one.outcome != "judged" for one, _ in found),
    )


HEADER = (
    f"{'framing':14} {'victim':8} {'K':>3} {'m':>3} {'cohorts':>8} "
    f"{'contaminated':>13} {'duplicate':>10} {'suspicious':>11} {'undetermined':>13} "
    f"{'least weight':>13} {'others out':>11} {'largest damage':>15}  reasons"
)


def line(rows: Sequence[Framed]) -> str:
    """One line: all cohorts of one framing, kind of victim, size and number of attackers."""
    one = rows[0]
    counts = [sum(r.victim == word for r in rows) for word in ORDER[:0:-1]]
    codes = sorted({r.codes for r in rows if r.codes})
    judged = [r for r in rows if r.victim != UNSURE]
    weight = f"{min(r.weight for r in judged):13.2f}" if judged else f"{'-':>13}"
    return (
        f"{one.framing:14} {one.who:8} {one.size:3} {one.bad:3} {len(rows):8} "
        f"{counts[0]:13} {counts[1]:10} {counts[2]:11} "
        f"{sum(r.unsure for r in rows):13} {weight} "
        f"{max(r.accused for r in rows):11} {max(r.damage for r in rows):15.3f}  {', '.join(codes)}"
    )


def as_json(one: Framed) -> dict[str, object]:
    """The same for a file."""
    return asdict(one)
