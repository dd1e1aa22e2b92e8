"""Reference aggregators on exact delta weights: what a robust merge is compared with.

All work on points of shape (K, D), float64, one row per client: the delta weights of all modules,
flattened (``flatten``). They return one point, (D,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def flatten(deltas: Mapping[str, Tensor]) -> Tensor:
    """Points (K, D) from delta weights, module to (K, out, in), modules in order of name."""
    return torch.cat([deltas[name].flatten(1) for name in sorted(deltas)], dim=1).double()


def unflatten(point: Tensor, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Delta weights, module to (out, in), from a point (D,); ``deltas`` gives the shapes."""
    names = sorted(deltas)
    shapes = [deltas[name].shape[1:] for name in names]
    parts = point.split([shape.numel() for shape in shapes])
    return {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def mean(points: Tensor) -> Tensor:
    """Plain mean: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (FedAvg), AISTATS 2017, arXiv 1602.05629."""
    return points.mean(0)


def geometric_median(points: Tensor, tolerance: float = 1e-10, limit: int = 100_000) -> Tensor:
    """Point with the least sum of distances, by Weiszfeld's iteration.

    Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est minimum",
    Tohoku Math. J. 43, 1937; as an aggregator: Pillutla, Kakade, Harchaoui, "Robust Aggregation
    for Federated Learning", arXiv 1912.13445. The iteration is run on the clients' weights, with
    distances from the Gram matrix, until no weight moves by more than ``tolerance``. Distances
    are floored at 1e-7 of the largest norm (about what a float64 Gram matrix can tell).
    """
    centred = points - points.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    floor = 1e-7 * squares.max().sqrt()
    weights = torch.full_like(squares, 1 / len(points))
    if floor == 0:
        return points[0].clone()
    for _ in range(limit):
        reach = gram @ weights
        distances = (squares - 2 * reach + weights @ reach).clamp_min(0).sqrt()
        updated = 1 / distances.clamp_min(floor)
        updated /= updated.sum()
        step, weights = (updated - weights).abs().max(), updated
        if step <= tolerance:
            break
    return weights @ points


def coordinate_median(points: Tensor) -> Tensor:
    """Median of every coordinate (mean of the middle two for even K): Yin et al., "Byzantine-Robust
    Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv 1803.01498."""
    ordered = points.sort(0).values
    return (ordered[(len(points) - 1) // 2] + ordered[len(points) // 2]) / 2


def krum_scores(points: Tensor, bad: int) -> Tensor:
    """Sum of squared distances to the K - bad - 2 nearest others (at least one), (K,)."""
    centred = points - points.mean(0)
    gram = centred @ centred.T
    squares = gram.diagonal()
    distances = (squares[:, None] + squares - 2 * gram).clamp_min(0)
    distances.fill_diagonal_(torch.inf)
    nearest = max(1, len(points) - bad - 2)
    return distances.sort(1).values[:, :nearest].sum(1)


def multi_krum(points: Tensor, bad: int) -> Tensor:
    """Mean of the K - bad points with the best Krum scores, told the true number ``bad``.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017, arXiv 1703.02757.
    """
    best = krum_scores(points, bad).argsort(stable=True)[: len(points) - bad]
    return points[best].mean(0)


PEERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": lambda points, bad: mean(points),
    "geometric-median": lambda points, bad: geometric_median(points),
    "coordinate-median": lambda points, bad: coordinate_median(points),
    "multi-krum": multi_krum,
}


def error(point: Tensor, target: Tensor) -> float:
    """Distance of a point (D,) from the target (D,), relative to the target's norm."""
    return float((point - target).norm() / target.norm())
