"""FedRPCA: the clients' factors split into a common low-rank part and sparse own parts.

Jhunjhunwala et al., "FedRPCA: Enhancing Federated LoRA Aggregation Using Robust PCA", arXiv
2506.01194, coded from its abstract: the clients' LoRA updates are decomposed by robust PCA, the
low-rank components averaged, and the sparse ones averaged with a scaling that amplifies them. It
is meant for heterogeneous honest clients, not for contamination.

Ours, where the abstract does not say: lora_A and lora_B of a module are split apart, as one column
per client each; the scaling is 2; the robust PCA has the usual weight 1 / sqrt(larger side). With
the scaling at 1 the two parts add up again and the result is ``factor_mean``, whatever the split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .factors import stacked_factors

if TYPE_CHECKING:
    from benchmarks.copying.cohorts import Member


def shrunk_spectrum(matrix: Tensor, threshold: float) -> Tensor:
    """``matrix`` (n, K) with all singular values lowered by ``threshold``, at least to 0.

    From the Gram matrix of the smaller side.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return shrunk_spectrum(matrix.T, threshold).T
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = squares > threshold**2
    values, vectors = squares[kept].sqrt(), vectors[:, kept]
    result: Tensor = matrix @ (vectors * ((values - threshold) / values)) @ vectors.T
    return result


def robust_pca(matrix: Tensor, tolerance: float = 1e-4, limit: int = 5000) -> tuple[Tensor, Tensor]:
    """Low-rank L and sparse S with L + S = ``matrix`` (n, K), by least |L|_* + weight |S|_1.

    Principal component pursuit: Candès, Li, Ma, Wright, "Robust Principal Component Analysis?",
    J. ACM 58, 2011, arXiv 0912.3599, with its weight 1 / sqrt(max(n, K)), solved by alternating
    directions as there; a quarter of its penalty and over-relaxation by 1.6 need a quarter of
    the steps on LoRA factors. It ends when |matrix - L - S| and the last change of S are below
    ``tolerance`` of |matrix|, which leaves L a few 1e-3 off the optimum or less. (The growing
    penalties of Lin, Chen, Ma, arXiv 1009.5055, are faster, but end at another split there: L off
    by a factor of 2.)
    """
    norm = float(torch.linalg.matrix_norm(matrix))
    low, sparse = torch.zeros_like(matrix), torch.zeros_like(matrix)
    if norm == 0:
        return low, sparse
    weight, relaxed = 1 / math.sqrt(max(matrix.shape)), 1.6
    penalty = matrix.numel() / (16 * float(matrix.abs().sum()))
    dual = torch.zeros_like(matrix)  # over the penalty
    for _ in range(limit):
        low = shrunk_spectrum((matrix - sparse).add_(dual), 1 / penalty)
        gap = matrix - low
        dual.add_(torch.lerp(sparse, gap, relaxed))
        before, sparse = sparse, torch.nn.functional.softshrink(dual, weight / penalty)
        dual -= sparse
        rest = max(float((gap - sparse).norm()), float((sparse - before).norm()))
        if rest <= tolerance * norm:
            break
    return low, sparse


def merged_factor(factors: Tensor, sparse_scale: float) -> Tensor:
    """Mean low-rank plus ``sparse_scale`` times mean sparse part of (K, rows, columns)."""
    low, sparse = robust_pca(factors.flatten(1).T)
    return (low.mean(1) + sparse_scale * sparse.mean(1)).view(factors.shape[1:])


def fedrpca(members: Sequence[Member], sparse_scale: float = 2.0) -> dict[str, Tensor]:
    """Delta weights of FedRPCA, module to (out, in)."""
    return {
        name: merged_factor(b, sparse_scale) @ merged_factor(a, sparse_scale)
        for name, (b, a) in stacked_factors(members).items()
    }
