"""Sums of low-rank products as one product, exactly, and cut to a rank with a known error."""

from __future__ import annotations

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
        return Product(self.lora_B * factor, self.lora_A)

    def __add__(self, other: Product) -> Product:
        return Product(
            torch.cat([self.lora_B, other.lora_B], dim=1),
            torch.cat([self.lora_A, other.lora_A], dim=0),
        )

    def __sub__(self, other: Product) -> Product:
        return self + other.scaled(-1.0)


@dataclass(frozen=True)
class Spectrum:
    """Singular value decomposition left @ diag(values) @ right of a `Product`.

    Attributes:
        left: orthonormal columns, (out_features, m); the leading ones, where m < n.
        values: all of them, descending, at least 0, (n,), n <= min(sum of ranks, out, in).
        right: orthonormal rows, (m, in_features).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def truncated(self, rank: int) -> Product:
        """The best approximation of that rank, singular values split evenly, zero padded.

        Raises:
            ValueError: fewer singular vectors are known.

        Source: C. Eckart, G. Young, Psychometrika 1(3), 1936.
        """
        kept = min(rank, len(self.values))
        if self.left.shape[1] < kept:
            raise ValueError(f"{self.left.shape[1]} singular vectors, {kept} needed")
        half = self.values[:kept].sqrt().to(self.left.dtype)
        lora_B, lora_A = self.left[:, :kept] * half, half[:, None] * self.right[:kept]
        if kept < rank:
            lora_B = torch.nn.functional.pad(lora_B, (0, rank - kept))
            lora_A = torch.nn.functional.pad(lora_A, (0, 0, 0, rank - kept))
        return Product(lora_B, lora_A)


def numerical_rank(values: Tensor) -> int:
    """Number of singular values (descending) above rounding error: 1e-10 of the largest."""
    if not len(values) or not float(values[0]) > 0:
        return 0
    return int((values > 1e-10 * values[0]).sum())


def tail_norm(values: Tensor, rank: int) -> float:
    """Frobenius norm of what cutting to `rank` leaves out; the whole norm for rank 0."""
    return float(torch.linalg.vector_norm(values[rank:]))


def singular_values(product: Product) -> Tensor:
    """Those of a product, descending, without its singular vectors; as `spectrum` gives them."""
    left_core = torch.linalg.qr(product.lora_B, mode="r").R
    right_core = torch.linalg.qr(product.lora_A.mT, mode="r").R
    values: Tensor = torch.linalg.svdvals(left_core @ right_core.mT)
    return values


def spectrum(product: Product) -> Spectrum:
    """Singular value decomposition through QR of both factors and SVD of the small core.

    Relative error about machine precision whatever the factors' gauge. Signs are fixed (the
    largest entry of each left vector is positive), so equal input gives equal output.

    Source: G. Golub, C. Van Loan, "Matrix Computations", 4th ed., section 5.4.8 (product
    form); used on LoRA factors by several federated systems.
    """
    left, left_core = torch.linalg.qr(product.lora_B)
    right, right_core = torch.linalg.qr(product.lora_A.mT)
    u, values, vt = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return with_signs(left @ u, values, vt @ right.mT)


def with_signs(left: Tensor, values: Tensor, right: Tensor) -> Spectrum:
    """A spectrum whose signs are fixed: the largest entry of each left vector is positive."""
    if left.numel():
        largest = left.abs().argmax(dim=0)
        signs = torch.sign(left[largest, torch.arange(left.shape[1], device=left.device)])
        signs = torch.where(signs == 0, 1.0, signs)
        left, right = left * signs, right * signs[:, None]
    return Spectrum(left, values, right)


def norm(product: Product) -> float:
    """Frobenius norm, to machine precision also when terms cancel."""
    left_core = torch.linalg.qr(product.lora_B, mode="r").R
    right_core = torch.linalg.qr(product.lora_A.mT, mode="r").R
    return float(torch.linalg.matrix_norm(left_core @ right_core.mT))
