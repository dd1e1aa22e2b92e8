"""The merged delta weight where there are more rank-one terms than the layer is wide.

With D = B W A and the smaller side `width`, D'D (or DD') is accumulated from a few rows of D at a
time: its cost grows linearly with the clients, and D never stands in memory. For the leading
eigenvectors V of it, D_r = (D V) V' is the best approximation of D of that rank, and at full rank
it is D, whatever the error of V. Singular values have an absolute error of 1e-7 of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.grams import add_symmetric
from clair_cli.maths.lowrank import Product
from clair_cli.maths.thin import Thin

# Rows of D that are computed at once.
_ROWS = 256


@dataclass(frozen=True)
class WideCore:
    """Eigenvectors of the smaller side.

    Attributes:
        vectors: orthonormal columns, (width, n), in order of `values`; the leading n.
        values: singular values of D, descending.
        transposed: whether `vectors` are D's left singular vectors rather than its right ones.
    """

    vectors: Tensor
    values: Tensor
    transposed: bool

    @property
    def n_vectors(self) -> int:
        return self.vectors.shape[1]

    @property
    def n_bytes(self) -> int:
        return 8 * self.vectors.numel()

    def leading(self, n: int) -> WideCore:
        """Without the vectors after the first n."""
        return WideCore(self.vectors[:, :n].clone(), self.values, self.transposed)


def wide_core(product: Product) -> WideCore:
    """Eigenvectors of the smaller side of a product of many terms, float64."""
    out_features, in_features = product.lora_B.shape[0], product.lora_A.shape[1]
    transposed = out_features < in_features
    tall, flat = product.lora_B, product.lora_A
    if transposed:
        tall, flat = flat.mT, tall.mT
    width = flat.shape[1]
    square = torch.zeros(1, width, width, dtype=torch.float64)
    dtype = _product_dtype(tall, flat)
    flat = flat.to(dtype)
    for start in range(0, len(tall), _ROWS):
        rows = tall[start : start + _ROWS].to(dtype) @ flat
        add_symmetric(square, rows.mT[None].double())
    square = square[0].tril()
    square += square.tril(-1).mT
    values, vectors = torch.linalg.eigh(square)
    return WideCore(vectors.flip(-1), values.flip(0).clamp_min(0.0).sqrt(), transposed)


def _product_dtype(tall: Tensor, flat: Tensor) -> torch.dtype:
    """Float32, whose error is a relative 1e-7 of D, where it holds the factors."""
    largest = [float(side.abs().max()) if side.numel() else 1.0 for side in (tall, flat)]
    return torch.float32 if all(1e-12 < size < 1e12 for size in largest) else torch.float64


def wide_thin(product: Product, core: WideCore) -> Thin:
    """The decomposition of the product that `core` was made of."""
    basis = core.vectors
    largest = float(core.values[0]) if len(core.values) else 0.0
    size = core.values[: basis.shape[1]].clamp_min(1e-12 * largest or 1.0)
    if core.transposed:
        right = (basis.mT @ product.lora_B) / size[:, None]
        return Thin(basis, product.lora_A, core.values, None, right)
    left = (product.lora_A @ basis) / size
    return Thin(product.lora_B, basis.mT, core.values, left, None)
