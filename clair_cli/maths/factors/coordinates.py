"""Products of one shape in orthonormal bases of all their factors: small ones that are the same.

With B = [B_1 ... B_K] = Q_B R_B and A' = [A_1' ... A_K'] = Q_A R_A, every sum of the products is
Q_B (...) Q_A' with the same sum of small ones inside: norms, inner products, singular values and
projections are those of the small ones, and nothing has the layer's width but the two bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.factored_svd import FactoredSVD
from clair_cli.maths.factors.lowrank import SVD, Product


@dataclass(frozen=True)
class Coordinates:
    """Products in bases that they share.

    Attributes:
        products: in the bases' coordinates, in the order given.
        shape: (out_features, in_features) of what they stand for.
        left: orthonormal columns, (out_features, p), p = min(out_features, number of terms); None
            if not asked for.
        right: orthonormal columns, (in_features, q).
    """

    products: tuple[Product, ...]
    shape: tuple[int, int]
    left: Tensor | None
    right: Tensor | None

    def factored(self, small: SVD) -> FactoredSVD:
        """What a decomposition in the coordinates stands for; the bases' dtype is that of the
        products that make its sides.

        Raises:
            ValueError: there are no bases.
        """
        if self.left is None or self.right is None:
            raise ValueError("made without bases")
        return FactoredSVD(
            self.left[None], self.right.mT[None], small.values[None],
            small.left[None], small.right[None], self.left.dtype,
        )  # fmt: skip

    def rounded(self, dtype: torch.dtype) -> Coordinates:
        """With bases of this dtype."""
        bases = [None if basis is None else basis.to(dtype) for basis in (self.left, self.right)]
        return Coordinates(self.products, self.shape, *bases)


def coordinates(products: Sequence[Product], *, bases: bool) -> Coordinates:
    """Put some products into coordinates of all of them.

    Args:
        products: one at least, of one shape, float64.
        bases: whether the bases are wanted too.

    Source: G. Golub, C. Van Loan, "Matrix Computations", 4th ed., section 5.2 (QR).
    """
    left, inner_B = _qr(torch.cat([p.lora_B for p in products], dim=1), bases)
    right, inner_A = _qr(torch.cat([p.lora_A for p in products]).mT, bases)
    ranks = [p.lora_B.shape[1] for p in products]
    small = zip(torch.split(inner_B, ranks, dim=1), torch.split(inner_A, ranks, dim=1), strict=True)
    shape = products[0].lora_B.shape[0], products[0].lora_A.shape[1]
    return Coordinates(tuple(Product(B, A.mT) for B, A in small), shape, left, right)


def _qr(tall: Tensor, whole: bool) -> tuple[Tensor | None, Tensor]:
    if whole:
        basis, inner = torch.linalg.qr(tall)
        return basis, inner
    found: Tensor = torch.linalg.qr(tall, mode="r").R
    return None, found
