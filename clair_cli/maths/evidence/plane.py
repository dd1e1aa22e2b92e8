"""A map of the clients: points in a plane whose inner products are about their similarities; and
the spectrum of these.

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
    table = _symmetric(similarity)
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


def spectrum(similarity: Tensor) -> Tensor:
    """Eigenvalues of the similarities, the largest first: squared singular values of the clients'
    updates side by side, each scaled to norm one.

    Each thing that several clients share is one value above 1, of about its number of clients times
    their similarity; of clients that share nothing all values are 1.

    Args:
        similarity: as in `plane`.

    Returns:
        (n,), rounded.
    """
    table = _symmetric(similarity)
    table.fill_diagonal_(1.0)
    values: Tensor = torch.linalg.eigvalsh(table).flip(0)
    return values.round(decimals=_DIGITS) + 0.0


def _symmetric(similarity: Tensor) -> Tensor:
    """The table without what is unknown and without its diagonal."""
    table = torch.nan_to_num(similarity.double(), nan=0.0)
    table = 0.5 * (table + table.T)
    return table.fill_diagonal_(0.0)
