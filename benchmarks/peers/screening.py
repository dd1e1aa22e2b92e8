"""Screens: clients that stand out by a z-score are dropped, the others averaged.

Both are rules of thumb without one source; the numbers are ours: a z-score over 2, and for the
PCA one component, with which it found most bad clients on the trained cohorts (2, 3, 5 or half of
the energy give outliers a component of their own). They are weak by construction where the bad are
many: these set the mean and the spread, or the leading component, themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 2.0


def z_scores(values: Tensor, robust: bool = False) -> Tensor:
    """Standard scores (K,) of numbers (K,): (value - centre) / spread.

    Centre and spread are the mean and the standard deviation (over K - 1), or with ``robust`` the
    median and 1.4826 times the median absolute deviation (which is the standard deviation for
    normal numbers). A plain score is at most (K - 1) / sqrt(K): none exceeds 2 in a cohort of
    five, and 40 % of equal outliers have sqrt(0.6 / 0.4) = 1.2. With no spread, what lies off the
    centre by more than rounding scores infinity.
    """
    if robust:
        centre = values.quantile(0.5)
        spread = 1.4826 * (values - centre).abs().quantile(0.5)
    else:
        centre, spread = values.mean(), values.std()
    offsets = values - centre
    rounding = 1e-12 * values.abs().max()
    if spread > rounding:
        return offsets / spread
    return torch.where(offsets.abs() <= rounding, 0.0, offsets.sign() * torch.inf)


def norm_z_score(points: Tensor, limit: float = LIMIT, robust: bool = False) -> Tensor:
    """Mean (D,) of the points (K, D) whose norm has a z-score within ``limit``, either way."""
    scores = z_scores(points.norm(dim=1), robust)
    return points[scores.abs() <= limit].mean(0)


def pooled_residuals(points: Tensor, components: int = 1) -> Tensor:
    """Share of each client's squared norm off the pooled leading components, (K,), 0 to 1.

    All clients' updates (K, D) are pooled and their principal components taken about zero (no
    update), from the Gram matrix.
    """
    gram = points @ points.T
    values, vectors = torch.linalg.eigh(gram)
    held = (values[-components:].clamp_min(0) * vectors[:, -components:].square()).sum(1)
    squares = gram.diagonal()
    return torch.where(squares > 0, 1 - held / squares.clamp_min(1e-300), 0.0).clamp(0, 1)


def pooled_pca(points: Tensor, components: int = 1, limit: float = LIMIT) -> Tensor:
    """Mean (D,) of the points (K, D) whose pooled residual has a z-score of at most ``limit``."""
    return points[z_scores(pooled_residuals(points, components)) <= limit].mean(0)
