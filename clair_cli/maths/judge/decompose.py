"""The structured low-rank plus block-sparse decomposition, M = L + S (+ E).

    noiseless   min  ||L||_* + lam sum_k ||S_k||                              L + S = M
    stable      min  1/2 ||M - L - S||^2 + lam1 ||L||_* + lam2 sum_k ||S_k||

M holds one block per client, scaled to unit norm; L's columns lie in the shared subspace; S
is zero on a benign client's block. A cohort is judged with one column per client
(collaborate.py); theory is about wider blocks (benchmarks/theory). With several modules the
nuclear norms add up, and a block may be a client's columns in all modules together (`joint`):
then the modules are coupled by one number per client and iteration only.

Any C with C'C = M'M has the same solutions up to the turn between C and M, because both programs
have solutions in M's column space: a square root of the stack's Gram (roots.core_from_gram) stands
for M.

Source: the programs are the paper's (arXiv 2605.21217, abstract) as we read it; for column
blocks the noiseless one is Outlier Pursuit (H. Xu, C. Caramanis, S. Sanghavi, "Robust PCA via
Outlier Pursuit", IEEE Trans. Inf. Theory 58(5), 2012). Solvers, duals and penalties are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clair_cli.maths.factors.stack import block_norms, spread
from clair_cli.maths.judge.prox import singular_value_threshold, spectral_norms


@dataclass(frozen=True)
class Decomposition:
    """A solution of one of the two programs, and how good it is.

    Attributes:
        low_rank: L, shape (n_modules, rows, sum(ranks)).
        block_norms: ||S_k||, shape (n_clients,) if joint, else (n_modules, n_clients);
            exactly 0 for a client that the program keeps.
        residuals: ||M_k - L_k||, same shape.
        subspace_dims: rank of L in each module.
        objective: value of the program at the solution.
        gap: (objective - dual value) / objective, at least 0; how far from optimal at most.
        n_iter: iterations used.
        outcome: "converged", or "max_iter" (the gap says how far it got).
        low_rank_penalty: lam1 (1 for the noiseless program).
        block_penalty: lam2 (lam for the noiseless program).
    """

    low_rank: Tensor
    block_norms: Tensor
    residuals: Tensor
    subspace_dims: tuple[int, ...]
    objective: float
    gap: float
    n_iter: int
    outcome: str
    low_rank_penalty: float
    block_penalty: float


def solve_stable(
    stack: Tensor,
    ranks: Sequence[int],
    low_rank_penalty: float,
    block_penalty: float,
    *,
    joint: bool = True,
    max_iter: int = 500,
    tol: float = 1e-6,
) -> Decomposition:
    """Solve the stable program by accelerated proximal gradient with restarts.

    Minimising over S first leaves `sum_k huber(||M_k - L_k||; lam2) + lam1 ||L||_*`, whose
    smooth part has a 1-Lipschitz gradient: the step is exactly 1 and a client's influence is
    bounded by lam2. S_k = 0 exactly when the client's residual is at most lam2.

    Args:
        stack: M or a root of its Gram, shape (n_modules, rows, sum(ranks)), float64, finite.
        ranks: columns of each client's block.
        low_rank_penalty: lam1, more than 0, units of a singular value of the stack.
        block_penalty: lam2, more than 0, units of a block's norm.
        joint: blocks run over all modules together.
        max_iter: at least 1.
        tol: stop at this relative duality gap.

    Raises:
        ValueError: a penalty is not positive.

    Source:
        A. Beck, M. Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J.
        Imaging Sci. 2(1), 2009; restart: B. O'Donoghue, E. Candes, "Adaptive restart for
        accelerated gradient schemes", Found. Comput. Math. 15, 2015.
    """
    if not (low_rank_penalty > 0 and block_penalty > 0):
        raise ValueError(
            f"penalties must be positive, got low_rank_penalty {low_rank_penalty}, "
            f"block_penalty {block_penalty}"
        )
    norms = partial(block_norms, ranks=ranks, joint=joint)
    low_rank = torch.zeros_like(stack)
    point, momentum = low_rank, 1.0
    best: tuple[float, float] = (float("inf"), -float("inf"))
    n_iter = 0
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        residual = stack - point
        kept = _kept_share(norms(residual), block_penalty)
        step = singular_value_threshold(point + residual * spread(kept, ranks), low_rank_penalty)
        if float(((point - step.value) * (step.value - low_rank)).sum()) > 0:
            momentum = 1.0  # the momentum points uphill: restart
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point = step.value + (momentum - 1) / following * (step.value - low_rank)
        low_rank, momentum = step.value, following
        best = _stable_bounds(
            stack, low_rank, step.nuclear_norm, ranks, low_rank_penalty, block_penalty, joint
        )
        if _gap(best) <= tol:
            break
    residuals = norms(stack - low_rank)
    gap = _gap(best)
    return Decomposition(
        low_rank,
        (residuals - block_penalty).clamp_min(0.0),
        residuals,
        tuple(step.rank.tolist()),
        best[0],
        gap,
        n_iter,
        "converged" if gap <= tol else "max_iter",
        low_rank_penalty,
        block_penalty,
    )


def _kept_share(residuals: Tensor, block_penalty: float) -> Tensor:
    """Share of each client's residual that stays out of S: min(1, lam2 / residual)."""
    tiny = torch.finfo(residuals.dtype).tiny
    return (block_penalty / residuals.clamp_min(tiny)).clamp_max(1.0)


def _stable_bounds(
    stack: Tensor,
    low_rank: Tensor,
    nuclear_norm: Tensor,
    ranks: Sequence[int],
    low_rank_penalty: float,
    block_penalty: float,
    joint: bool,
) -> tuple[float, float]:
    """Value of the stable program at L, and of its dual at a feasible point.

    Dual: max <Y, M> - 1/2 ||Y||^2 with ||Y|| <= lam1 in each module and ||Y_k|| <= lam2;
    Y is the residual without S, scaled into the spectral ball.
    """
    residual = stack - low_rank
    norms = block_norms(residual, ranks, joint=joint)
    huber = torch.where(
        norms <= block_penalty, 0.5 * norms**2, block_penalty * norms - 0.5 * block_penalty**2
    )
    primal = float(huber.sum()) + low_rank_penalty * float(nuclear_norm.sum())
    dual_point = residual * spread(_kept_share(norms, block_penalty), ranks)
    spectral = spectral_norms(dual_point)
    tiny = torch.finfo(stack.dtype).tiny
    shrink = (low_rank_penalty / spectral.clamp_min(tiny)).clamp_max(1.0)
    dual_point = dual_point * shrink[:, None, None]
    dual = float((dual_point * stack).sum() - 0.5 * (dual_point * dual_point).sum())
    return primal, dual


def _gap(bounds: tuple[float, float]) -> float:
    primal, dual = bounds
    return max(0.0, primal - dual) / primal if primal > 0 else 0.0
