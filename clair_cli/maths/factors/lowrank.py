"""Sums of low-rank products as one product, exactly, and cut to a rank with a known error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """A matrix as lora_B @ lora_A, never multiplied out.

    Attributes:
        lora_B: shape (out_features, rank), float64 (float32 where it is only to be rounded).
        lora_A: shape (rank, in_features), of the same dtype.
    """

    lora_B: Tensor
    lora_A: Tensor

    def scaled(self, factor: float) -> Product:
        """`factor` times the matrix."""
        return Product(self.lora_B * factor, self.lora_A)

    def __add__(self, other: Product) -> Product:
        return Product(
            torch.cat([self.lora_B, other.lora_B], dim=1),
            torch.cat([self.lora_A, other.lora_A], dim=0),
        )

    def __sub__(self, other: Product) -> Product:
        return self + other.scaled(-1.0)


def sum_of(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """The weighted sum of at least one product, exactly, as one product of stacked factors."""
    return Product(
        torch.cat([p.lora_B * w for p, w in zip(products, weights, strict=True)], dim=1),
        torch.cat([p.lora_A for p in products]),
    )


@dataclass(frozen=True)
class SVD:
    """Singular value decomposition left @ diag(values) @ right of a `Product`.

    Attributes:
        left: orthonormal columns, (out_features, n).
        values: all singular values, descending, at least 0, (n,), n <= min(rank, out, in).
        right: orthonormal rows, (n, in_features).
    """

    left: Tensor
    values: Tensor
    right: Tensor


def numerical_rank(values: Tensor) -> int:
    """Number of singular values (descending) above rounding error: 1e-10 of the largest."""
    if not len(values) or not float(values[0]) > 0:
        return 0
    return int((values > 1e-10 * values[0]).sum())


def tail_norm(values: Tensor, rank: int) -> float:
    """Frobenius norm of the part that cutting to `rank` leaves out, from the singular values
    (descending); for rank 0 the norm of the whole matrix.
    """
    return float(torch.linalg.vector_norm(values[rank:]))


def singular_values(product: Product) -> Tensor:
    """The singular values of a product, descending, as `svd` gives them, without vectors."""
    if _is_small(product):
        found: Tensor = torch.linalg.svdvals(product.lora_B @ product.lora_A)
        return found
    left_core = torch.linalg.qr(product.lora_B, mode="r").R
    right_core = torch.linalg.qr(product.lora_A.mT, mode="r").R
    values: Tensor = torch.linalg.svdvals(left_core @ right_core.mT)
    return values


def svd(product: Product) -> SVD:
    """Singular value decomposition through QR of both factors and SVD of the small core.

    Relative error about machine precision in every gauge of the factors. The signs of the vectors
    are left as LAPACK returns them.

    Source: G. Golub, C. Van Loan, "Matrix Computations", 4th ed., section 5.4.8 (product
    form); used on LoRA factors by several federated systems.
    """
    if _is_small(product):
        return SVD(*torch.linalg.svd(product.lora_B @ product.lora_A, full_matrices=False))
    left, left_core = torch.linalg.qr(product.lora_B)
    right, right_core = torch.linalg.qr(product.lora_A.mT)
    u, values, vt = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return SVD(left @ u, values, vt @ right.mT)


def inner(one: Product, other: Product) -> float:
    """Frobenius inner product of two matrices of one shape."""
    left, right = one.lora_B.mT @ other.lora_B, one.lora_A @ other.lora_A.mT
    return float((left * right).sum())


def norm(product: Product) -> float:
    """Frobenius norm, to machine precision even where rank-one components cancel."""
    if _is_small(product):
        return float(torch.linalg.matrix_norm(product.lora_B @ product.lora_A))
    left_core = torch.linalg.qr(product.lora_B, mode="r").R
    right_core = torch.linalg.qr(product.lora_A.mT, mode="r").R
    return float(torch.linalg.matrix_norm(left_core @ right_core.mT))


def _is_small(product: Product) -> bool:
    """Whether the matrix is no larger than the core of its factors, and is decomposed directly."""
    rows, n_components = product.lora_B.shape
    return 0 < max(rows, product.lora_A.shape[1]) <= n_components
