"""Attacks written down in one line: signs, sizes, noise, random and honest subspaces.

All attackers know the honest updates. See `attacks_base` for the interface.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.attacks.base import (
    RANK,
    Attack,
    Deltas,
    low_rank,
    matched,
    median_norm,
    normal,
    orthonormal,
    parted,
)


def own_times(deltas: Deltas, bad: int, generator: torch.Generator, factor: float) -> Deltas:
    """x_k = ``factor`` own_k.

    -1 is the sign flip (Li et al., "RSA", AAAI 2019, arXiv 1811.03761); 2 to 100 is boosting
    (Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, arXiv 1807.00459).
    """
    return {name: factor * own for name, own in parted(deltas, bad)[1].items()}


def mean_times(deltas: Deltas, bad: int, generator: torch.Generator, factor: float) -> Deltas:
    """x = ``factor`` mean(honest), the same for all attackers.

    -1 is the sign flip of the mean; -eps is inner-product manipulation: below the share of
    honest over bad clients it shrinks the mean, above it turns it round (Xie, Koyejo, Gupta,
    "Fall of Empires", UAI 2019, arXiv 1903.03936).
    """
    honest = parted(deltas, bad)[0]
    return {name: (factor * one.mean(0)).repeat(bad, 1, 1) for name, one in honest.items()}


def gaussian(deltas: Deltas, bad: int, generator: torch.Generator) -> Deltas:
    """x_k ~ N(0, s^2 I), norm-matched; s fixed would be found by its norm alone.

    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017, arXiv 1703.02757.
    """
    honest, own = parted(deltas, bad)
    return {name: matched(normal(generator, *own[name].shape), one) for name, one in honest.items()}


def noisy(deltas: Deltas, bad: int, generator: torch.Generator, share: float) -> Deltas:
    """x_k = own_k + Gaussian noise whose norm is ``share`` times own_k's, by module.

    The second form of the attack above.
    """
    result = {}
    for name, own in parted(deltas, bad)[1].items():
        noise = normal(generator, *own.shape)
        size = own.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        result[name] = own + share * size[:, None, None] * noise
    return result


def rows_reversed(deltas: Deltas, bad: int, generator: torch.Generator) -> Deltas:
    """x_k = P own_k, P the permutation that reverses the output rows of every module.

    Stand-in for training on flipped labels y' = C - 1 - y (Tolpegin et al., "Data Poisoning
    Attacks Against Federated Learning Systems", ESORICS 2020, arXiv 2007.08432): for a linear
    head with classes as rows the two are the same. Inside a network P is only a permutation of
    features. Norm, rank and input space stay those of the own update.
    """
    return {name: own.flip(1) for name, own in parted(deltas, bad)[1].items()}


def fresh(
    deltas: Deltas, bad: int, generator: torch.Generator, shared: bool, spread: float = 1.0
) -> Deltas:
    """x_k = U' C_k V'^T, norm-matched, in random subspaces of ``RANK`` dimensions.

    With ``shared`` all attackers have the same U' and V'. Coefficients are a common part plus own
    ones: ``spread`` 1 means own ones only, 0.05 nearly identical attackers, 0 identical ones
    (sybils: Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings",
    RAID 2020, arXiv 1808.04866). The contamination that arXiv 2605.21217 is about.
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
    """x_k = U C_k V^T, norm-matched, U and V the top ``RANK`` singular spaces of the honest mean.

    C_k is random, or with ``reverse`` minus the attacker's own coefficients U^T own_k V. Own
    form: what a residual outside the shared subspace can't see.
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


def free_rider(
    deltas: Deltas, bad: int, generator: torch.Generator, mean: float, noise: float
) -> Deltas:
    """x_k = ``mean`` mean(honest) + a random low-rank matrix of norm ``noise`` times the median.

    (0, 0) sends nothing, (0, 0.01) next to nothing; (1, 0.3) hides that it has nothing of its
    own behind the others' mean, which stands for the global update that a free rider has seen
    (Lin et al., "Free-riders in Federated Learning", arXiv 1911.12560; Fraboni et al., AISTATS
    2021, arXiv 2006.11901).
    """
    result = {}
    for name, honest in parted(deltas, bad)[0].items():
        rows, columns = honest.shape[1:]
        size = noise * median_norm(honest)
        extra = torch.stack([low_rank(generator, rows, columns) for _ in range(bad)])
        result[name] = mean * honest.mean(0) + size * extra
    return result


def mimic_first(deltas: Deltas, bad: int, generator: torch.Generator) -> Deltas:
    """x = the first honest client's update (`attacks_optimised.mimic` chooses which)."""
    honest = parted(deltas, bad)[0]
    return {name: one[0].repeat(bad, 1, 1) for name, one in honest.items()}


SIMPLE: dict[str, Attack] = {
    "flip-own": partial(own_times, factor=-1.0),
    "flip-mean": partial(mean_times, factor=-1.0),
    "scale-2": partial(own_times, factor=2.0),
    "scale-5": partial(own_times, factor=5.0),
    "scale-10": partial(own_times, factor=10.0),
    "scale-100": partial(own_times, factor=100.0),
    "gaussian": gaussian,
    "noise-own": partial(noisy, share=1.0),
    "rows-reversed": rows_reversed,
    "ipm-0.1": partial(mean_times, factor=-0.1),
    "ipm-0.5": partial(mean_times, factor=-0.5),
    "ipm-2": partial(mean_times, factor=-2.0),
    "ipm-10": partial(mean_times, factor=-10.0),
    "fresh": partial(fresh, shared=False),
    "fresh-colluding": partial(fresh, shared=True),
    "fresh-alike": partial(fresh, shared=True, spread=0.05),
    "sybils-same": partial(fresh, shared=True, spread=0.0),
    "inside-random": partial(inside, reverse=False),
    "inside-reversed": partial(inside, reverse=True),
    "free-zero": partial(free_rider, mean=0.0, noise=0.0),
    "free-noise": partial(free_rider, mean=0.0, noise=0.01),
    "free-mean": partial(free_rider, mean=1.0, noise=0.3),
    "mimic-first": mimic_first,
}
