"""The merge of over-complete stacks: more rank-one components than the layer has rows or columns.

With D = B W A and `width` the smaller of its two dimensions, D'D (or DD') is accumulated from a few
rows of D at a time: the cost grows linearly with the clients, and D is never in memory as a whole.
With the r leading eigenvectors V of D'D, (D V) V' is the best approximation of D of rank r; at full
rank it is D, whatever the error of V. Singular values have an absolute error of 1e-7 of the
largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import add_symmetric, mirror
from clair_cli.maths.factors.stack import FactorStack
from clair_cli.maths.merge.from_grams import CoreSVD

# Rows of D that are computed at once.
_ROWS = 256
# Vectors that are computed at once.
_VECTORS = 128
# Products in float32 have an error of 1e-6 of D where the norm of D is above this share of the root
# of its components' summed squares.
_KEPT = 0.1


def overcomplete_svd(
    stack: FactorStack, weights: Sequence[float], n_vectors: int | None = None
) -> CoreSVD:
    """Decompose the weighted sum of one module's delta weights; computed on the CPU.

    Args:
        stack: of one module.
        weights: one finite number per client.
        n_vectors: how many singular vectors are wanted; all of them if None.

    Returns:
        The decomposition; of the narrower side it holds the singular vectors themselves (see
        `CoreSVD.itself`).
    """
    lora_B, lora_A = stack.lora_B[0].cpu(), stack.lora_A[0].cpu()
    norm_B = torch.linalg.vector_norm(lora_B, dim=0, dtype=torch.float64)
    norm_A = torch.linalg.vector_norm(lora_A, dim=1, dtype=torch.float64)
    scaled = torch.tensor(list(weights), dtype=torch.float64) * stack.scaling[0]
    by = torch.repeat_interleave(scaled, torch.tensor(list(stack.ranks)))
    by = torch.where((norm_A > 0) & (norm_B > 0), by, 0.0)
    if lora_B.shape[0] >= lora_A.shape[1]:
        vectors, values, others, errors = _svd_from_squares(
            lora_B, lora_A, norm_B, norm_A, by, n_vectors
        )
        return CoreSVD(others, values, vectors.mT, errors, "right")
    vectors, values, others, errors = _svd_from_squares(
        lora_A.mT, lora_B.mT, norm_A, norm_B, by, n_vectors
    )
    return CoreSVD(vectors, values, others.mT, errors, "left")


def _svd_from_squares(
    tall: Tensor, flat: Tensor, norm_tall: Tensor, norm_flat: Tensor, by: Tensor, n: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decompose X = tall diag(by) flat, (height, width), through X'X.

    Args:
        norm_tall, norm_flat: norms of the columns of `tall` and of the rows of `flat`,
            (n_components,).
        n: number of singular vectors; all of them if None.

    Returns:
        The leading right singular vectors, (width, n); all singular values; the left vectors in
        coordinates of `tall`, (n_components, n); and the amplification of rounding errors by these
        coordinates, (n,).
    """
    balance = torch.where(by != 0.0, norm_flat / norm_tall, 0.0).sqrt()
    by_tall, by_flat = balance * by, torch.where(balance > 0, 1.0 / balance, 0.0)
    flat = flat.double() * by_flat[:, None]
    largest = float(flat.abs().max()) if flat.numel() else 1.0
    square = None
    if 1e-12 < largest < 1e12:  # float32 holds both factors, which are balanced
        square = _square(tall, by_tall, flat.float())
        # the error is 1e-7 of the components' size, too much where they cancel
        components = (norm_tall * norm_flat * by).square().sum()
        if not float(square.trace()) > _KEPT**2 * float(components):
            square = None
    if square is None:
        square = _square(tall, by_tall, flat)
    squares, vectors = torch.linalg.eigh(square)
    values = squares.flip(0).clamp_min(0.0).sqrt()
    vectors = vectors.flip(1)
    n = vectors.shape[1] if n is None else min(n, vectors.shape[1])
    size = values[:n].clamp_min(1e-12 * float(values[0]) or 1.0)
    others = by_tall[:, None] * _leading_products(flat, vectors, n) / size
    vectors = vectors[:, :n].clone()
    errors = torch.linalg.vector_norm(norm_tall[:, None] * others, dim=0).clamp_min(1.0)
    return vectors, values, others, errors


def _leading_products(flat: Tensor, vectors: Tensor, n: int) -> Tensor:
    """`flat @ vectors[:, :n]`, a few vectors at a time: the same bits whatever n is."""
    found = flat.new_empty(len(flat), n, dtype=vectors.dtype)
    for start in range(0, n, _VECTORS):
        block = flat @ vectors[:, start : start + _VECTORS]
        found[:, start : start + _VECTORS] = block[:, : n - start]
    return found


def _square(tall: Tensor, by_tall: Tensor, flat: Tensor) -> Tensor:
    """X'X of X = tall diag(by_tall) flat, float64; products in the dtype of `flat`."""
    square = torch.zeros(1, flat.shape[1], flat.shape[1], dtype=torch.float64)
    for start in range(0, len(tall), _ROWS):
        rows = (tall[start : start + _ROWS].double() * by_tall).to(flat.dtype) @ flat
        add_symmetric(square, rows.mT[None].double())
    mirror(square)
    return square[0]
