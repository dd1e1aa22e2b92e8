"""Attacks that need no training, made on top of a clean cohort.

An attack takes the delta weights of all clean clients, module to (K, out, in) float64, and the
number of bad clients. The *last* ``bad`` clients are the attackers: what they would have sent is
their "own" update, and the first K - bad clients are the honest ones, all of which they know. It
returns the attackers' delta weights, module to (bad, out, in). ``ATTACKS`` has them by name.

"Norm-matched" means: in every module, the median norm of the honest clients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from cohorts import Member, State, stack
from copying import seeded
from torch import Tensor

Deltas = dict[str, Tensor]
Attack = Callable[[Deltas, int, torch.Generator], Deltas]
RANK = 8


def parted(deltas: Mapping[str, Tensor], bad: int) -> tuple[Deltas, Deltas]:
    """Honest updates (K - bad, out, in) and the attackers' own ones (bad, out, in), by module."""
    count = len(next(iter(deltas.values())))
    if not 0 < bad < count:
        raise ValueError(f"{bad} bad clients of {count}: wanted are 1 to {count - 1}")
    honest = {name: delta[: count - bad] for name, delta in deltas.items()}
    return honest, {name: delta[count - bad :] for name, delta in deltas.items()}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Random matrix with orthonormal columns, (rows, columns)."""
    return torch.linalg.qr(normal(generator, rows, columns))[0]


def matched(delta: Tensor, honest: Tensor) -> Tensor:
    """``delta`` (bad, out, in) with every client's norm set to the honest median."""
    median = honest.flatten(1).norm(dim=1).quantile(0.5)
    return delta / delta.flatten(1).norm(dim=1)[:, None, None] * median


def own_times(deltas: Deltas, bad: int, generator: torch.Generator, factor: float) -> Deltas:
    """``factor`` times the own update: sign flip (-1) or boosting (10)."""
    return {name: factor * own for name, own in parted(deltas, bad)[1].items()}


def mean_times(deltas: Deltas, bad: int, generator: torch.Generator, factor: float) -> Deltas:
    """``factor`` times the honest mean, the same for all attackers.

    -1 is the sign flip; -eps is inner-product manipulation (Xie, Koyejo, Gupta, "Fall of Empires",
    UAI 2019, arXiv 1903.03936).
    """
    honest = parted(deltas, bad)[0]
    return {name: (factor * one.mean(0)).repeat(bad, 1, 1) for name, one in honest.items()}


def alie(deltas: Deltas, bad: int, generator: torch.Generator, deviations: float) -> Deltas:
    """Honest mean minus some standard deviations, by coordinate; all attackers the same.

    Baruch, Baruch, Goldberg, "A Little Is Enough", NeurIPS 2019, arXiv 1902.06156; the strength
    is fixed here, for their formula gives about 0 in small cohorts.
    """
    honest = parted(deltas, bad)[0]
    return {
        name: (one.mean(0) - deviations * one.std(0, correction=0)).repeat(bad, 1, 1)
        for name, one in honest.items()
    }


def fresh(
    deltas: Deltas, bad: int, generator: torch.Generator, shared: bool, spread: float = 1.0
) -> Deltas:
    """Norm-matched U' C V'^T in random subspaces of ``RANK`` dimensions.

    With ``shared`` all attackers have the same U' and V'. Coefficients are a common part plus own
    ones: ``spread`` 1 means own ones only, 0.05 nearly identical attackers.
    """
    result = {}
    for name, honest in parted(deltas, bad)[0].items():
        rows, columns = honest.shape[1:]
        rank = min(RANK, rows, columns)
        common = (1 - spread**2) ** 0.5 * normal(generator, rank, rank)
        sides = (orthonormal(generator, rows, rank), orthonormal(generator, columns, rank))
        made = []
        for _ in range(bad):
            if not shared:
                sides = (orthonormal(generator, rows, rank), orthonormal(generator, columns, rank))
            core = common + spread * normal(generator, rank, rank)
            made.append(sides[0] @ core @ sides[1].T)
        result[name] = matched(torch.stack(made), honest)
    return result


def inside(deltas: Deltas, bad: int, generator: torch.Generator, reverse: bool) -> Deltas:
    """Norm-matched U C' V^T in the top ``RANK`` singular spaces of the honest mean.

    C' is random, or with ``reverse`` minus the attacker's own coefficients U^T D V.
    """
    honest, own = parted(deltas, bad)
    result = {}
    for name, one in honest.items():
        left, _, right = torch.linalg.svd(one.mean(0), full_matrices=False)
        left, right = left[:, :RANK], right[:RANK]
        core = normal(generator, bad, left.shape[1], right.shape[0])
        if reverse:
            core = -(left.T @ own[name] @ right.T)
        result[name] = matched(left @ core @ right, one)
    return result


def noisy(deltas: Deltas, bad: int, generator: torch.Generator, share: float) -> Deltas:
    """Own update plus Gaussian noise whose norm is ``share`` times the own one's, by module."""
    result = {}
    for name, own in parted(deltas, bad)[1].items():
        noise = normal(generator, *own.shape)
        size = own.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        result[name] = own + share * size[:, None, None] * noise
    return result


ATTACKS: dict[str, Attack] = {
    "flip-own": partial(own_times, factor=-1.0),
    "flip-mean": partial(mean_times, factor=-1.0),
    "scale-10": partial(own_times, factor=10.0),
    "ipm-0.5": partial(mean_times, factor=-0.5),
    "ipm-2": partial(mean_times, factor=-2.0),
    "alie-1.5": partial(alie, deviations=1.5),
    "fresh": partial(fresh, shared=False),
    "fresh-colluding": partial(fresh, shared=True),
    "fresh-alike": partial(fresh, shared=True, spread=0.05),
    "inside-random": partial(inside, reverse=False),
    "inside-reversed": partial(inside, reverse=True),
    "noise-own": partial(noisy, share=1.0),
}


def factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in) with B A = ``delta`` (out, in), r its numerical rank, float64.

    Singular values are split evenly between both; those that together make up less than 1e-9 of
    the norm are left out. Columns come in falling order, so that a cut is the best truncation.
    """
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    tail = values.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tail > 1e-9 * tail[0]).sum()))
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def as_lora(
    deltas: Mapping[str, Tensor], config: Mapping[str, Any], rank: int | None = None
) -> tuple[State, dict[str, Any]]:
    """Dense delta weights, module to (out, in), as a float32 state dict and a configuration.

    Without ``rank`` the rank is the largest numerical rank of the modules, and B A is ``deltas``
    to 1e-6; with it, modules are cut to it. Smaller modules are padded with zeros, and
    lora_alpha is the rank, so that the scale is 1. ``config`` is the one to start from.
    """
    pairs = {name: factors(delta) for name, delta in deltas.items()}
    rank = rank or max(b.shape[1] for b, _ in pairs.values())
    state: State = {}
    for name, (b, a) in pairs.items():
        missing = max(0, rank - b.shape[1])
        a, b = a[:rank].float(), b[:, :rank].float()
        state[f"{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        state[f"{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    state = {name: value.contiguous() for name, value in state.items()}
    made = copy.deepcopy(dict(config))
    made.update(r=rank, lora_alpha=rank, use_rslora=False, rank_pattern={}, alpha_pattern={})
    return state, made


def attacked(
    members: Sequence[Member], name: str, bad: int, seed: int = 0, rank: int | None = None
) -> list[Member]:
    """The clean cohort with its last ``bad`` members turned into attackers."""
    generator = seeded("attack", name, seed)
    made = ATTACKS[name](stack(members), bad, generator)
    kept = list(members[: len(members) - bad])
    for index in range(bad):
        deltas = {module: delta[index] for module, delta in made.items()}
        state, config = as_lora(deltas, members[len(kept)][2], rank)
        kept.append((f"{name}-{index:02d}", state, config, True))
    return kept
