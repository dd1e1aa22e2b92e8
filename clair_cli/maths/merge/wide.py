"""The merged delta weight where there are more rank-one terms than the layer is wide.

With D = B W A and the smaller side `width`, D'D (or DD') is accumulated from a few rows of D at a
time: its cost grows linearly with the clients, and D never stands in memory. For the leading
eigenvectors V of it, D_r = (D V) V' is the best approximation of D of that rank, and at full rank
it is D, whatever the error of V. Singular values have an absolute error of 1e-7 of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import add_symmetric, mirror
from clair_cli.maths.factors.stack import FactorStack
from clair_cli.maths.factors.thin import Thin

# Rows of D that are computed at once.
_ROWS = 256
# Share of the components' size that a sum must have for float32 products to be good to 1e-6 of it.
_KEPT = 0.1


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

    def leading(self, n: int) -> WideCore:
        """Without the vectors after the first n."""
        return WideCore(self.vectors[:, :n].clone(), self.values, self.transposed)


@dataclass(frozen=True)
class _Terms:
    """D = lora_B diag(by_B) diag(by_A) lora_A, the two halves of one size term by term."""

    lora_B: Tensor
    lora_A: Tensor
    by_B: Tensor
    by_A: Tensor
    components: float  # their summed squared norms


def _terms(stack: FactorStack, weights: Sequence[float]) -> _Terms:
    lora_B, lora_A = stack.lora_B[0].cpu(), stack.lora_A[0].cpu()
    norm_B = torch.linalg.vector_norm(lora_B, dim=0, dtype=torch.float64)
    norm_A = torch.linalg.vector_norm(lora_A, dim=1, dtype=torch.float64)
    scaled = torch.tensor(list(weights), dtype=torch.float64) * stack.scaling[0]
    each = torch.repeat_interleave(scaled, torch.tensor(list(stack.ranks)))
    alive = (norm_A > 0) & (norm_B > 0)
    balance = torch.where(alive, norm_A / norm_B, 0.0).sqrt()
    components = float((norm_B * norm_A * each).square().sum())
    return _Terms(
        lora_B, lora_A, balance * each, torch.where(alive, 1.0 / balance, 0.0), components
    )


def wide_core(stack: FactorStack, weights: Sequence[float]) -> WideCore:
    """Decompose the weighted sum of a module's delta weights.

    Args:
        stack: of one module.
        weights: one finite number per client.
    """
    terms = _terms(stack, weights)
    tall, flat, by_tall, by_flat = terms.lora_B, terms.lora_A, terms.by_B, terms.by_A
    transposed = tall.shape[0] < flat.shape[1]
    if transposed:
        tall, flat, by_tall, by_flat = flat.mT, tall.mT, by_flat, by_tall
    flat = flat.double() * by_flat[:, None]
    largest = float(flat.abs().max()) if flat.numel() else 1.0
    square = None
    if 1e-12 < largest < 1e12:  # float32 holds the factors (both are of one size)
        square = _square(tall, by_tall, flat.float())
        # its error is 1e-7 of the components, which may cancel
        if not float(square.trace()) > _KEPT**2 * terms.components:
            square = None
    if square is None:
        square = _square(tall, by_tall, flat)
    values, vectors = torch.linalg.eigh(square)
    return WideCore(vectors.flip(-1), values.flip(0).clamp_min(0.0).sqrt(), transposed)


def _square(tall: Tensor, by_tall: Tensor, flat: Tensor) -> Tensor:
    """X'X of X = tall diag(by_tall) flat, float64; products in the dtype of `flat`."""
    square = torch.zeros(1, flat.shape[1], flat.shape[1], dtype=torch.float64)
    for start in range(0, len(tall), _ROWS):
        rows = (tall[start : start + _ROWS].double() * by_tall).to(flat.dtype) @ flat
        add_symmetric(square, rows.mT[None].double())
    mirror(square)
    return square[0]


def wide_thin(stack: FactorStack, weights: Sequence[float], core: WideCore) -> Thin:
    """The decomposition of the sum that `core` was made of, as far as it has vectors."""
    terms, basis = _terms(stack, weights), core.vectors
    by = terms.by_B * terms.by_A
    largest = float(core.values[0]) if len(core.values) else 0.0
    size = core.values[: basis.shape[1]].clamp_min(1e-12 * largest or 1.0)
    if core.transposed:
        right = (basis.mT @ terms.lora_B.double()) * by / size[:, None]
        return Thin(basis[None], terms.lora_A[None], core.values[None], None, right[None])
    left = by[:, None] * (terms.lora_A.double() @ basis) / size
    return Thin(terms.lora_B[None], basis.mT[None], core.values[None], left[None], None)
