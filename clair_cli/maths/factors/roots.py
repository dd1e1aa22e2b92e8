"""Roots of Gram matrices: small matrices with the same Gram."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.factors.block_diagonal import BlockDiagonal, diagonal_blocks


def core_from_gram(gram: Tensor) -> Tensor:
    """Square root C of a stack's Gram H = C'C, its rows by descending singular value.

    Args:
        gram: shape (n_modules, n, n), positive semi-definite.

    Returns:
        C, shape (n_modules, n, n).
    """
    values, vectors = torch.linalg.eigh(gram)
    roots = values.clamp_min(0.0).sqrt().flip(-1)
    root: Tensor = roots[:, :, None] * vectors.mT.flip(-2)
    return root


def half_factors(gram: Tensor, ranks: Sequence[int]) -> BlockDiagonal:
    """Square roots T of a Gram's diagonal blocks: T_k T_k' = gram[k, k].

    Args:
        gram: shape (n_modules, sum_rank, sum_rank), positive semi-definite.
    """
    blocks = diagonal_blocks(gram, ranks).blocks
    if isinstance(blocks, Tensor):
        return BlockDiagonal(gram_root(blocks), tuple(ranks))
    return BlockDiagonal(tuple(gram_root(block) for block in blocks), tuple(ranks))


def gram_root(gram: Tensor) -> Tensor:
    """Square root T of a Gram: T T' = gram.

    Args:
        gram: positive semi-definite, (..., n, n).

    Returns:
        The Cholesky factors; if one Gram has none (its rank is below n, up to rounding error), all
        roots are made of eigenvectors.
    """
    lower, info = torch.linalg.cholesky_ex(gram)
    if not info.any():
        found: Tensor = lower
        return found
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    return root
