"""Updates crafted with full knowledge of the honest ones: a base, a direction, a strength.

    x_j = base_j + gamma * N * p_j                       in every module

N is the median norm of the honest clients there, p_j has norm one, and gamma is what is searched
over (after Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021: the tailored attack
maximises the strength that the defence still lets in). The base carries what makes the attacker
look honest: the common direction, and its own honest residual, which keeps it from being a
duplicate or unnaturally close to the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.attacks import Deltas, fresh, normal, orthonormal, parted
from benchmarks.copying.cohorts import Member, cohort, stack
from benchmarks.copying.task import seeded

RANK = 8
# (times the honest mean, times the own residual from it) of each base.
BASES: dict[str, tuple[float, float]] = {
    "own": (1.0, 1.0),
    "mean": (1.0, 0.3),
    "mean-twice": (2.0, 0.3),
}
# Share of a direction that all attackers have in common, squared.
COMMON = 0.5


@dataclass(frozen=True)
class Scene:
    """A cohort whose last clients attack.

    Attributes:
        members: all clients as they would be if nobody attacked, honest ones first.
        honest: their delta weights, module to (K - bad, out, in), float64; own: what the
            attackers would have sent, (bad, out, in).
        harm: mean update of the pool's backdoored clients, module to (out, in), or None.
        seed: of the random directions.
    """

    members: tuple[Member, ...]
    honest: Deltas
    own: Deltas
    harm: Deltas | None
    seed: int

    @property
    def bad(self) -> int:
        """Number of attackers."""
        return len(next(iter(self.own.values())))

    @property
    def size(self) -> int:
        """Number of clients, attackers included."""
        return len(self.members)


def make_scene(
    members: Sequence[Member], bad: int, harm: Deltas | None = None, seed: int = 0
) -> Scene:
    """The last `bad` of a clean cohort become attackers."""
    honest, own = parted(stack(members), bad)
    return Scene(tuple(members), honest, own, harm, seed)


def trained_harm(pool: Path) -> Deltas:
    """Mean delta weight of a pool's backdoored clients, module to (out, in)."""
    count = len(list(pool.glob("backdoor-[0-9]*")))
    deltas = stack(cohort(pool, 0, {"backdoor": count}))
    return {name: delta.mean(0) for name, delta in deltas.items()}


def unit(delta: Tensor) -> Tensor:
    """Matrices (..., out, in) with every norm set to one (zero stays zero)."""
    return delta / torch.linalg.matrix_norm(delta, keepdim=True).clamp_min(1e-300)


def typical(honest: Tensor) -> Tensor:
    """Median norm of the honest clients of one module."""
    return torch.linalg.matrix_norm(honest).quantile(0.5)


Direction = Callable[[Scene, torch.Generator], Deltas]


def _same(scene: Scene, one: Mapping[str, Tensor]) -> Deltas:
    return {name: unit(p).expand(scene.bad, *p.shape).clone() for name, p in one.items()}


def _beside(delta: Tensor, mean: Tensor) -> Tensor:
    """The part of a matrix at right angles to another one."""
    line = unit(mean)
    return delta - (delta * line).sum() * line


def reverse(scene: Scene, generator: torch.Generator) -> Deltas:
    """Against the honest mean."""
    return _same(scene, {name: -delta.mean(0) for name, delta in scene.honest.items()})


def deviation(scene: Scene, generator: torch.Generator) -> Deltas:
    """Minus the honest standard deviation of each coordinate, as in ALIE (arXiv 1902.06156)."""
    found = {name: -delta.std(0, correction=0) for name, delta in scene.honest.items()}
    return _same(scene, found)


def inside(scene: Scene, generator: torch.Generator) -> Deltas:
    """Random in the leading RANK singular spaces of the honest mean, at right angles to it."""
    found = {}
    for name, delta in scene.honest.items():
        mean = delta.mean(0)
        left, _, right = torch.linalg.svd(mean, full_matrices=False)
        rank = min(RANK, len(right))
        made = left[:, :rank] @ normal(generator, rank, rank) @ right[:rank]
        found[name] = _beside(made, mean)
    return _same(scene, found)


def strange(scene: Scene, generator: torch.Generator) -> Deltas:
    """Subspaces of nobody's, a new one for each attacker."""
    made = fresh({n: _all(scene, n) for n in scene.honest}, scene.bad, generator, shared=False)
    return {name: unit(delta) for name, delta in made.items()}


def strange_together(scene: Scene, generator: torch.Generator) -> Deltas:
    """One such update, the same for all."""
    made = {}
    for name, delta in scene.honest.items():
        rows, columns = delta.shape[1:]
        rank = min(RANK, rows, columns)
        sides = orthonormal(generator, rows, rank), orthonormal(generator, columns, rank)
        made[name] = sides[0] @ normal(generator, rank, rank) @ sides[1].T
    return _same(scene, made)


def strange_half(scene: Scene, generator: torch.Generator) -> Deltas:
    """Half common, half each attacker's own: enough alike to add up, too little to be a group."""
    common, own = strange_together(scene, generator), strange(scene, generator)
    return {n: unit(COMMON**0.5 * common[n] + (1 - COMMON) ** 0.5 * own[n]) for n in common}


def against_one(scene: Scene, generator: torch.Generator) -> Deltas:
    """Against what sets the first honest client apart from the others."""
    return _same(scene, {n: h[1:].mean(0) - h[0] for n, h in scene.honest.items()})


def backdoor(scene: Scene, generator: torch.Generator) -> Deltas:
    """What trained backdoored clients have and honest ones lack: at right angles to their mean."""
    if scene.harm is None:
        raise ValueError("this scene has no backdoored clients")
    return _same(scene, {n: _beside(scene.harm[n], h.mean(0)) for n, h in scene.honest.items()})


DIRECTIONS: dict[str, Direction] = {
    "reverse": reverse,
    "deviation": deviation,
    "inside": inside,
    "strange": strange,
    "strange-half": strange_half,
    "strange-together": strange_together,
    "against-one": against_one,
    "backdoor": backdoor,
}


def _all(scene: Scene, name: str) -> Tensor:
    return torch.cat([scene.honest[name], scene.own[name]])


def direction(scene: Scene, name: str) -> Deltas:
    """The attackers' directions, module to (bad, out, in), of norm one in each module."""
    return DIRECTIONS[name](scene, seeded("adaptive", name, scene.seed))


def base(scene: Scene, name: str) -> Deltas:
    """What the attackers send at strength 0, module to (bad, out, in)."""
    mean_part, own_part = BASES[name]
    return {
        module: mean_part * honest.mean(0) + own_part * (scene.own[module] - honest.mean(0))
        for module, honest in scene.honest.items()
    }


def craft(scene: Scene, start: Deltas, towards: Deltas, gamma: float) -> Deltas:
    """`start` and `gamma` honest norms `towards`, module to (bad, out, in)."""
    return {n: start[n] + gamma * typical(h) * towards[n] for n, h in scene.honest.items()}
