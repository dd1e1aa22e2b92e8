"""Low-rank products in a shared orthonormal basis (joint QR): their norms, inner products and SVDs
are those of small matrices.

With B = [B_1 ... B_K] = Q_B R_B and A' = [A_1' ... A_K'] = Q_A R_A, the product B_k A_k is
Q_B (R_Bk R_Ak') Q_A'. Sums, norms, inner products, singular values and projections of the products
are computed from the small matrices R_Bk R_Ak'; only the two bases have the layer's width.
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
    """Low-rank products in coordinates of two bases that they share, one per side.

    Attributes:
        products: B_k A_k as factors R_Bk (p, rank_k) and R_Ak' (rank_k, q), in the order given.
        shape: (out_features, in_features) of the products themselves.
        left: basis of the output side, orthonormal columns, (out_features, p),
            p = min(out_features, sum of ranks); None if not asked for.
        right: basis of the input side, orthonormal columns, (in_features, q); None likewise.
    """

    products: tuple[Product, ...]
    shape: tuple[int, int]
    left: Tensor | None
    right: Tensor | None

    def factored(self, small: SVD) -> FactoredSVD:
        """The SVD of one module's matrix from the SVD of its coordinates.

        Args:
            small: in coordinates of the bases, left (p, n) and right (n, q).

        Returns:
            One module; its products with the bases are computed in the bases' dtype.

        Raises:
            ValueError: the coordinates were made without bases.
        """
        if self.left is None or self.right is None:
            raise ValueError("made without bases")
        return FactoredSVD(
            self.left[None], self.right.mT[None], small.values[None],
            small.left[None], small.right[None], self.left.dtype,
        )  # fmt: skip

    def rounded(self, dtype: torch.dtype) -> Coordinates:
        """The same products, with the bases converted to `dtype`."""
        bases = [None if basis is None else basis.to(dtype) for basis in (self.left, self.right)]
        return Coordinates(self.products, self.shape, *bases)


def coordinates(products: Sequence[Product], *, bases: bool) -> Coordinates:
    """Write products in orthonormal bases of all their columns and of all their rows.

    Args:
        products: at least one, of one shape, float64.
        bases: whether the bases themselves are computed too.

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
