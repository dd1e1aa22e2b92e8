"""Exact recovery without being told the subspace's dimension or the number of benign clients.

The noiseless program (noiseless.py)

    min ||L||_* + lam sum_k ||S_k||    s.t. L + S = M = [M_1 ... M_K], every block of norm one

has the right answer for lam between sqrt(r / K_b) and a bound that the outliers set, r being the
dimension of the shared subspace and K_b the number of benign clients. Both are unknown, but an
answer can be checked against the lam that gave it. Let n clients be kept (S_k = 0), and d be the
dimension of the subspace refitted on them. The answer is self-consistent when

    sqrt(d / n) < lam              those n clients would open the window at or below this lam,
    d < sum of their ranks, rows   they do share directions, and not merely all that there are,
    nobody else lies inside        the refitted subspace explains the kept clients and no other.

lam rises from 1 / ||M||_2, below which L = 0. A window opens at sqrt(d / n), so the first
self-consistent answer is the densest one: the fewest shared dimensions for each client. It is
not the largest: outliers that agree with one another join a larger, less dense set at larger lam.

The kept clients are refitted because L itself is tilted by what outliers with decaying spectra
leave in it, long after the set is right. Nothing is added to the kept set: whether the program
found it is the question here. The rule is ours; the program is arXiv 2605.21217 as we read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.theory.noiseless import solve_noiseless
from clair_cli.maths.factors.stack import block_norms, client_columns, spread


@dataclass(frozen=True)
class Recovered:
    """The shared subspace and who shares it.

    Attributes:
        kept: clients with S_k = 0, sorted; empty where no answer was self-consistent.
        basis: orthonormal basis of the shared subspace, (rows, subspace_dim).
        lam: penalty that gave the answer, or the last one tried.
        n_solves: programs solved on the way.
    """

    kept: tuple[int, ...]
    basis: Tensor
    lam: float
    n_solves: int


def unit_blocks(stack: Tensor, ranks: Sequence[int]) -> Tensor:
    """Every client's block scaled to norm one; a zero block stays zero. Shape unchanged."""
    norms = block_norms(stack[None], ranks, joint=True)
    return stack * spread(torch.where(norms > 0, 1.0 / norms, 0.0), ranks)[0]


def refit(stack: Tensor, ranks: Sequence[int], clients: Sequence[int], tol: float) -> Tensor:
    """Orthonormal basis of the columns of some clients' blocks, (rows, subspace_dim).

    Args:
        tol: singular values up to this share of the largest count as zero.
    """
    if not clients:
        return stack[:, :0]
    left, values, _ = torch.linalg.svd(
        stack[:, client_columns(ranks, clients)], full_matrices=False
    )
    return left[:, values > tol * values[0]]


def explained(stack: Tensor, ranks: Sequence[int], basis: Tensor, tol: float) -> tuple[int, ...]:
    """Clients whose block, of norm one, lies in the span of `basis` up to `tol`."""
    outside = stack - basis @ (basis.mT @ stack)
    norms = block_norms(outside[None], ranks, joint=True)
    return tuple(k for k, norm in enumerate(norms.tolist()) if norm <= tol)


def solve_at(
    stack: Tensor, ranks: Sequence[int], lam: float, tol: float = 1e-6
) -> tuple[tuple[int, ...], Tensor]:
    """Kept clients and refitted subspace at one given lam, consistent or not.

    Args:
        stack: as in `recover`, every block of norm one.
    """
    solution = solve_noiseless(stack[None], ranks, lam, tol=tol)
    kept = tuple(k for k, s in enumerate(solution.block_norms[0].tolist()) if s == 0.0)
    return kept, refit(stack, ranks, kept, tol)


def consistent(
    stack: Tensor, ranks: Sequence[int], kept: Sequence[int], basis: Tensor, lam: float, tol: float
) -> bool:
    """Whether an answer passes the three checks of this module's text."""
    dim, n = basis.shape[1], len(kept)
    if n < 2 or not dim < min(sum(ranks[k] for k in kept), len(stack)):
        return False
    return (dim / n) ** 0.5 < lam and explained(stack, ranks, basis, tol) == tuple(kept)


def recover(
    stack: Tensor, ranks: Sequence[int], *, step: float = 1.05, tol: float = 1e-6
) -> Recovered:
    """Shared subspace and collaborative set of one module, noiseless; see the module's text.

    Args:
        stack: M, shape (rows, sum(ranks)), float64; blocks of any norm. Either the delta
            weights side by side, or Q' D_k V_k in any orthonormal bases that hold them.
        ranks: columns of each client's block.
        step: factor from one lam to the next, more than 1.
        tol: what counts as zero beside a block of norm one, and the solver's duality gap.
    """
    stack = unit_blocks(stack, ranks)
    lam = 1.0 / max(float(torch.linalg.matrix_norm(stack, ord=2)), torch.finfo(stack.dtype).tiny)
    last = max(ranks) ** 0.5  # above it L takes any single client
    n_solves = 0
    while lam < last * step:
        lam, n_solves = lam * step, n_solves + 1
        kept, basis = solve_at(stack, ranks, lam, tol)
        if consistent(stack, ranks, kept, basis, lam, tol):
            return Recovered(kept, basis, lam, n_solves)
        if len(kept) == len(ranks):
            break  # a larger lam keeps everybody, too
    return Recovered((), stack[:, :0], lam, n_solves)
