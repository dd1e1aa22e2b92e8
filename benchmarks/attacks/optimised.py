"""Attacks whose strength is computed from the honest updates or against an aggregator.

All attackers send the same point; see `attacks_base` for the interface. mu and sigma are the
honest mean and standard deviation by coordinate (of the dense delta weights of all modules).
Most of them move single coordinates, so that x is no longer of low rank: as a LoRA it needs the
full rank of the module, which no honest client has, unless `attacks.attacked` is told to cut it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from benchmarks.attacks.base import Attack, Deltas, copies, deltas_of, parted, points_of
from benchmarks.peers.rules import coordinate_median, krum_scores

Direction = Callable[[Tensor], Tensor]
Aggregator = Callable[[Tensor], Tensor]


def honest_points(deltas: Deltas, bad: int) -> Tensor:
    """Points of the honest clients, (K - bad, D)."""
    return points_of(parted(deltas, bad)[0])


def deviation(points: Tensor) -> Tensor:
    """sigma: standard deviation by coordinate (over n, not n - 1), (D,)."""
    return points.std(0, correction=0)


def alie_strength(count: int, bad: int) -> float:
    """z of ALIE for ``count`` clients, ``bad`` of them attackers.

    s = floor(n / 2 + 1) - m supporters are needed for a majority; z is the largest deviation
    that s of the n - m honest clients exceed: z = inv_Phi((n - m - s) / (n - m)), about 0 in small
    cohorts (0 for 10 and 2, 0.16 for 20 and 4). Never below 0; s is at least 1.
    """
    honest = count - bad
    supporters = max(1, count // 2 + 1 - bad)
    share = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0 else 0.0


def alie(
    deltas: Deltas, bad: int, generator: torch.Generator, deviations: float | None = None
) -> Deltas:
    """x = mu - z sigma; z is ``deviations``, or that of `alie_strength`.

    Baruch, Baruch, Goldberg, "A Little Is Enough", NeurIPS 2019, arXiv 1902.06156. They take
    sigma of the attackers' own updates, here it is that of the honest ones. A negative z is the
    form with the other sign that other implementations have.
    """
    honest = honest_points(deltas, bad)
    z = alie_strength(len(honest) + bad, bad) if deviations is None else deviations
    return copies(honest.mean(0) - z * deviation(honest), bad, deltas)


def against_unit(honest: Tensor) -> Tensor:
    """p = -mu / ||mu||, (D,)."""
    return -honest.mean(0) / honest.mean(0).norm()


def against_sign(honest: Tensor) -> Tensor:
    """p = -sign(mu), (D,)."""
    return -honest.mean(0).sign()


def against_std(honest: Tensor) -> Tensor:
    """p = -sigma, (D,)."""
    return -deviation(honest)


def squared_distances(points: Tensor) -> Tensor:
    """Squared distances of all pairs, (n, n), from the Gram matrix of the centred points."""
    centred = points - points.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clamp_min(0).fill_diagonal_(0)


def min_max(deltas: Deltas, bad: int, generator: torch.Generator, direction: Direction) -> Deltas:
    """x = mu + g p, g the largest with max_i ||x - x_i|| <= max_ij ||x_i - x_j||.

    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021. Each client gives a quadratic
    in g; g is the smallest of their positive roots (the paper searches by halving).
    """
    honest = honest_points(deltas, bad)
    p, offset = direction(honest), honest.mean(0) - honest
    slope, square = offset @ p, p @ p
    room = squared_distances(honest).max() - offset.square().sum(1)  # at least 0: mu is inside
    root = (-slope + (slope.square() + square * room.clamp_min(0)).sqrt()) / square
    return copies(honest.mean(0) + root.min() * p, bad, deltas)


def min_sum(deltas: Deltas, bad: int, generator: torch.Generator, direction: Direction) -> Deltas:
    """x = mu + g p, g the largest with sum_i ||x - x_i||^2 <= min_i sum_j ||x_i - x_j||^2.

    Source as `min_max`; the bound with the minimum is that of the authors' code. Offsets from the
    mean sum to zero, so that g^2 = (bound - sum_i ||mu - x_i||^2) / (n ||p||^2).
    """
    honest = honest_points(deltas, bad)
    p = direction(honest)
    used = (honest - honest.mean(0)).square().sum()
    room = squared_distances(honest).sum(1).min() - used
    strength = (room.clamp_min(0) / (len(honest) * p.square().sum())).sqrt()
    return copies(honest.mean(0) + strength * p, bad, deltas)


def with_copies(honest: Tensor, point: Tensor, bad: int) -> Tensor:
    """Honest points first, then ``bad`` times the point: (n + bad, D)."""
    return torch.cat([honest, point.repeat(bad, 1)])


def fang_krum(deltas: Deltas, bad: int, generator: torch.Generator) -> Deltas:
    """x = -l sign(mu), l halved from an upper bound until Krum picks x.

    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    USENIX Security 2020, arXiv 1911.11815: the bound is sqrt(least Krum score / ((n - bad - 1) D))
    + largest norm / sqrt(D), and l is given up below 1e-5 of it.
    """
    honest = honest_points(deltas, bad)
    size = honest.shape[1]
    least = krum_scores(honest, 0).min()
    strength = (least / (max(1, len(honest) - 1) * size)).sqrt()
    strength = strength + honest.norm(dim=1).max() / math.sqrt(size)
    sign, floor = honest.mean(0).sign(), 1e-5 * strength
    while strength > floor:
        scores = krum_scores(with_copies(honest, -strength * sign, bad), bad)
        if int(scores.argmin()) >= len(honest):
            break
        strength = strength / 2
    return copies(-strength * sign, bad, deltas)


def fang_trim(deltas: Deltas, bad: int, generator: torch.Generator, b: float = 2.0) -> Deltas:
    """Just outside the honest range of every coordinate, on the side against sign(mu).

    Where mu > 0 a number between the honest minimum and 1/b of it (minimum above 0) or b times it
    (below 0); where mu <= 0 likewise beyond the maximum. Drawn for each attacker apart. Against
    trimmed mean and median; source as `fang_krum`.
    """
    honest = honest_points(deltas, bad)
    low, high = honest.amin(0), honest.amax(0)
    below = torch.where(low > 0, low / b, low * b)
    above = torch.where(high > 0, high * b, high / b)
    up = honest.mean(0) <= 0
    near, far = torch.where(up, high, low), torch.where(up, above, below)
    share = torch.rand(bad, len(near), generator=generator, dtype=torch.float64)
    return deltas_of(near + share * (far - near), deltas)


def agr_krum(deltas: Deltas, bad: int, generator: torch.Generator, direction: Direction) -> Deltas:
    """x = mu + l p, l the largest found for which Multi-Krum keeps all attackers.

    The tailored attack of Shejwalkar and Houmansadr (see `min_max`) on Multi-Krum that keeps n of
    n + bad and is told the true number: doubling, then 30 halvings; l is always one that was kept.
    """
    honest = honest_points(deltas, bad)
    mean, p = honest.mean(0), direction(honest)

    def kept(strength: float) -> bool:
        scores = krum_scores(with_copies(honest, mean + strength * p, bad), bad)
        best = scores.argsort(stable=True)[: len(honest)]
        return int((best >= len(honest)).sum()) == min(bad, len(honest))

    low, high = 0.0, float(honest.norm(dim=1).max() / p.norm()) * 1e-3
    while high < 1e12 and kept(high):
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return copies(mean + low * p, bad, deltas)


def line_search(damage: Callable[[float], float], evaluations: int = 20) -> float:
    """Strength with the largest damage found: steps from 10 doubled while it helps, then x 0.8.

    The search of ByzFL's attacks, which starts at 0.
    """
    best, most, step, growing = 0.0, damage(0.0), 10.0, True
    for _ in range(evaluations - 1):
        value = damage(best + step)
        if value > most:
            best, most = best + step, value
        else:
            growing = False
        step *= 2.0 if growing else 0.8
    return best


def optimal(
    deltas: Deltas, bad: int, generator: torch.Generator, spread: bool, rule: Aggregator
) -> Deltas:
    """x = mu + t p, t = argmax ||rule(honest and bad copies of x) - mu|| by `line_search`.

    p is -mu (Opt-IPM) or with ``spread`` -sigma (Opt-ALIE). Allouah et al., "Fixing by
    Mixing", AISTATS 2023, arXiv 2302.01772. Against the mean, which has no bound, the search
    only stops after its 20 evaluations.
    """
    honest = honest_points(deltas, bad)
    mean, p = honest.mean(0), -deviation(honest) if spread else -honest.mean(0)

    def damage(strength: float) -> float:
        points = with_copies(honest, mean + strength * p, bad)
        return float((rule(points) - mean).norm())

    return copies(mean + line_search(damage) * p, bad, deltas)


def mimic(deltas: Deltas, bad: int, generator: torch.Generator) -> Deltas:
    """x = the honest client furthest out along the top direction z of sum (x_i - mu)(x_i - mu)^T.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    ICLR 2022, arXiv 2006.09365. z comes from the Gram matrix, up to its sign, which is set so that
    the client furthest out lies on its positive side.
    """
    honest = honest_points(deltas, bad)
    centred = honest - honest.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    along = vectors[:, -1] * values[-1].clamp_min(0).sqrt()  # <z, x_i - mu>
    return copies(honest[int(along.abs().argmax())], bad, deltas)


def average(points: Tensor) -> Tensor:
    """Mean of the points, (K, D) to (D,)."""
    return points.mean(0)


STRENGTHS = (0.5, 1.0, 1.5, 3.0)
DIRECTIONS: dict[str, Direction] = {
    "unit": against_unit, "sign": against_sign, "std": against_std,
}  # fmt: skip
OPTIMISED: dict[str, Attack] = {
    "alie": alie,
    **{f"alie-{z:g}": partial(alie, deviations=z) for z in STRENGTHS},
    **{f"alie-plus-{z:g}": partial(alie, deviations=-z) for z in STRENGTHS},
    **{f"min-max-{name}": partial(min_max, direction=p) for name, p in DIRECTIONS.items()},
    **{f"min-sum-{name}": partial(min_sum, direction=p) for name, p in DIRECTIONS.items()},
    "fang-krum": fang_krum,
    "fang-trim": fang_trim,
    "agr-krum-unit": partial(agr_krum, direction=against_unit),
    "agr-krum-std": partial(agr_krum, direction=against_std),
    "opt-ipm-mean": partial(optimal, spread=False, rule=average),
    "opt-ipm-median": partial(optimal, spread=False, rule=coordinate_median),
    "opt-alie-mean": partial(optimal, spread=True, rule=average),
    "opt-alie-median": partial(optimal, spread=True, rule=coordinate_median),
    "mimic": mimic,
}
