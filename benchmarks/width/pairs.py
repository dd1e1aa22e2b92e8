"""How alike pairs of clients are, in units of what chance gives.

The null: the column spaces and row spaces of two delta weights are what they are, and which
direction of the one goes with which of the other is chance. The cosine of D_j and D_k then has
mean 0 and variance <D_j D_j', D_k D_k'> <D_j' D_j, D_k' D_k>, both at |D| = 1. The ratio of cosine
and standard deviation is z. (Our own formula.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Tables of one module's pairs of clients, each (clients, clients).

    Attributes:
        inner: inner products of the delta weights B A.
        cosine: their cosines.
        z: cosines over their null's standard deviation.
        output: cosines of D D', 0 to 1: the similarity of column spaces.
    """

    inner: Tensor
    cosine: Tensor
    z: Tensor
    output: Tensor


def pairs(A: Tensor, B: Tensor) -> Pairs:
    """Tables of all pairs, float64, from A (clients, rank, in) and B (clients, out, rank)."""
    right, upper = torch.linalg.qr(A.double().mT)
    left = B.double() @ upper.mT  # D = left right'
    upper = torch.linalg.qr(left)[1]
    row = right @ upper.mT  # D' = row times orthonormal columns'
    inner = _block_sums(_products(left) * _products(right))
    output = _block_sums(_products(left).square())
    input_ = _block_sums(_products(row).square())
    cosine = inner / _sizes(inner)
    deviation = (output * input_).sqrt() / _sizes(inner) ** 2
    return Pairs(inner, cosine, cosine / deviation, output / _sizes(output))


def _products(x: Tensor) -> Tensor:
    """x_j' x_k of all pairs, (clients, rank, clients, rank), from (clients, width, rank)."""
    clients, width, rank = x.shape
    side_by_side = x.permute(1, 0, 2).reshape(width, -1)
    return (side_by_side.T @ side_by_side).reshape(clients, rank, clients, rank)


def _block_sums(products: Tensor) -> Tensor:
    """Sum over each pair's block, (clients, clients)."""
    return products.sum((1, 3))


def _sizes(table: Tensor) -> Tensor:
    """Products of the roots of the diagonal, (clients, clients)."""
    roots = table.diagonal().sqrt()
    return roots * roots[:, None]


def split(table: Tensor, kinds: Sequence[str]) -> tuple[float, float]:
    """Means of a table over pairs of honest clients and over mixed pairs."""
    honest = torch.tensor([kind == "honest" for kind in kinds])
    upper = torch.ones_like(table, dtype=torch.bool).triu(1)
    inside = table[honest[:, None] & honest & upper].mean()
    return float(inside), float(table[honest[:, None] & ~honest].mean())
