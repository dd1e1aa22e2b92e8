"""The noiseless program: low-rank plus block-sparse, and nothing else.

`clair` solves the stable program only (`clair_cli.maths.judge.decompose`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.factors.stack import block_norms
from clair_cli.maths.judge.decompose import Decomposition, _gap
from clair_cli.maths.judge.prox import group_soft_threshold, singular_value_threshold


def solve_noiseless(
    stack: Tensor,
    ranks: Sequence[int],
    block_penalty: float,
    *,
    joint: bool = False,
    max_iter: int = 2000,
    tol: float = 1e-6,
) -> Decomposition:
    """Solve the noiseless program by the alternating direction method of multipliers.

    Args:
        stack: M or a root of its Gram, shape (n_modules, rows, sum(ranks)), float64, finite.
        ranks: columns of each client's block.
        block_penalty: lam, more than 0. It finds shared subspace and set when it lies above
            sqrt(subspace_dim / n_benign) and below about 1 (unrelated outliers).
        joint: blocks run over all modules together.
        max_iter: at least 1.
        tol: stop at this relative duality gap.

    Raises:
        ValueError: the penalty is not positive.

    Source:
        S. Boyd and others, "Distributed optimization and statistical learning via the
        alternating direction method of multipliers", Found. Trends Mach. Learn. 3(1), 2011,
        sections 3.1 and 3.4.1 (penalty balancing).
    """
    if not block_penalty > 0:
        raise ValueError(f"block_penalty must be positive, got {block_penalty}")
    low_rank, dual = torch.zeros_like(stack), torch.zeros_like(stack)
    block_sparse = stack - low_rank
    size = max(float(torch.linalg.vector_norm(stack)), torch.finfo(stack.dtype).tiny)
    rho = 1.0 / max(float(torch.linalg.matrix_norm(stack, ord=2).max()), 1e-300)
    bounds, n_iter = (float("inf"), -float("inf")), 0
    for n_iter in range(1, max_iter + 1):
        step = singular_value_threshold(stack - block_sparse + dual / rho, 1.0 / rho)
        low_rank, before = step.value, block_sparse
        block_sparse = group_soft_threshold(
            stack - low_rank + dual / rho, ranks, block_penalty / rho, joint=joint
        )
        slack = stack - low_rank - block_sparse
        dual = dual + rho * slack
        primal_residual = float(torch.linalg.vector_norm(slack)) / size
        dual_residual = rho * float(torch.linalg.vector_norm(block_sparse - before)) / size
        if n_iter % 10 == 0 or n_iter == max_iter:
            bounds = _noiseless_bounds(stack, low_rank, dual, ranks, block_penalty, joint)
            if _gap(bounds) <= tol and primal_residual <= tol:
                break
            if primal_residual > 10 * dual_residual:
                rho *= 2.0
            elif dual_residual > 10 * primal_residual:
                rho /= 2.0
    gap = _gap(bounds)
    return Decomposition(
        low_rank,
        block_norms(block_sparse, ranks, joint=joint),
        block_norms(stack - low_rank, ranks, joint=joint),
        tuple(step.rank.tolist()),
        bounds[0],
        gap,
        n_iter,
        "converged" if gap <= tol else "max_iter",
        1.0,
        block_penalty,
    )


def _noiseless_bounds(
    stack: Tensor,
    low_rank: Tensor,
    dual: Tensor,
    ranks: Sequence[int],
    block_penalty: float,
    joint: bool,
) -> tuple[float, float]:
    """Value of the noiseless program at (L, M - L), and of its dual at a feasible point.

    Dual: max <Y, M> with ||Y|| <= 1 in each module and ||Y_k|| <= lam.
    """
    outside = block_norms(stack - low_rank, ranks, joint=joint)
    nuclear = torch.linalg.matrix_norm(low_rank, ord="nuc").sum()
    primal = float(nuclear) + block_penalty * float(outside.sum())
    spectral = torch.linalg.matrix_norm(dual, ord=2).max()
    largest = block_norms(dual, ranks, joint=joint).max() / block_penalty
    feasible = dual / torch.clamp_min(torch.maximum(spectral, largest), 1.0)
    return primal, float((feasible * stack).sum())
