"""A map of the clients: points in a plane whose inner products are about their similarities.

The scaling is classical but not centred, as for distances it would be: the origin keeps its
meaning. Who shares nothing with anybody lies there, clients that share the same lie in the same
direction, the further out the more they share, and an opposite client lies on the other side. A
client's similarity to itself is unknown; the largest of its similarities to others stands for it.

Sources: W. S. Torgerson, "Multidimensional scaling: I. Theory and method", Psychometrika 17, 1952;
L. L. Thurstone, Multiple-factor analysis, 1947 (the largest correlation as communality).
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIGITS = 6
# Two entries of an axis are as large as each other within this share of the largest: its sign
# then follows the first of them, not the last bit.
_SAME = 1e-6


def plane(similarity: Tensor) -> Tensor:
    """Coordinates of the clients.

    Args:
        similarity: of each pair, above that of unrelated clients; NaN where unknown, which counts
            as sharing nothing, (n, n); the diagonal is not used.

    Returns:
        (n, 2), rounded. Each axis has the sign in which its largest entry is positive, so that the
        same similarities give the same map.
    """
    n = len(similarity)
    table = torch.nan_to_num(similarity.double(), nan=0.0)
    table = 0.5 * (table + table.T)
    table.fill_diagonal_(0.0)
    if n < 2:
        return torch.zeros(n, 2, dtype=torch.float64)
    table.diagonal().copy_(table.abs().amax(1))
    values, vectors = torch.linalg.eigh(table)
    axes = vectors[:, -2:].flip(1)
    sizes = axes.abs()
    first = (sizes >= (1.0 - _SAME) * sizes.amax(0)).double().argmax(0, keepdim=True)
    signs = axes.gather(0, first).sign()
    points: Tensor = axes * signs * values[-2:].flip(0).clamp_min(0.0).sqrt()
    return points.round(decimals=_DIGITS) + 0.0  # no -0.0
