"""The stable program on whole blocks: the clients that share directions of one side, and which.

`clair` solves the program (clair_cli.maths.judge.decompose) for one column per client, which can
share a line only. Here a block is a client's whole unit delta weight, and several modules are
solved together. Penalties come from the stack: every client's block has norm one over all
modules, so a direction with a singular value above 1 / sqrt(n_modules) is one that no client can
make alone.

    lam1 = sqrt(sigma_d * max(bar, sigma_{d+1}))    medians over modules; d: where the group's
                                                    spectrum falls most, bar = 1 / sqrt(n_modules)
    lam2 = sqrt(1 - LINE^2 * captured)              captured: energy that L takes of a typical
                                                    member's block at this lam1

Many unrelated blocks in little room can enter L together, so the kept clients are refitted: a
member has at least LINE^2 of the group's typical energy inside the leading directions of the other
kept ones. The program is arXiv 2605.21217 as we read it; penalties and refit are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.theory.recovery import unit_blocks
from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.factors.stack import client_columns
from clair_cli.maths.judge.collaborate import shared_dim
from clair_cli.maths.judge.decompose import Decomposition, solve_stable
from clair_cli.maths.judge.prox import left_singular
from clair_cli.maths.judge.thresholds import LINE


@dataclass(frozen=True)
class Penalties:
    """Of the stable program, for blocks of joint norm one.

    Attributes:
        low_rank: lam1. block: lam2, at most 1.
        subspace_dims: shared dimensions in each module; 0 where nothing is shared.
    """

    low_rank: float
    block: float
    subspace_dims: tuple[int, ...]


@dataclass(frozen=True)
class Shared:
    """What the program finds.

    Attributes:
        solution: over all clients.
        penalties: with which it was solved.
        kept: the clients with S_k = 0. members: those of them that the refit leaves.
    """

    solution: Decomposition
    penalties: Penalties
    kept: tuple[int, ...]
    members: tuple[int, ...]


def output_blocks(modules: Sequence[Sequence[Product]]) -> tuple[Tensor, list[int]]:
    """Every client's unit delta weight D_k V_k, V_k an orthonormal basis of its rows, side by side.

    Args:
        modules: per module one product per client, of the same rank in all.

    Returns:
        Shape (n_modules, out, sum(ranks)), each block of joint norm one; and the ranks.
    """
    ranks = [p.lora_A.shape[0] for p in modules[0]]
    stacks = [
        torch.cat([p.lora_B @ torch.linalg.qr(p.lora_A.mT).R.mT for p in clients], dim=1)
        for clients in modules
    ]
    units = torch.stack([unit_blocks(stack, ranks) for stack in stacks])
    return units / len(units) ** 0.5, ranks


def estimate_penalties(stack: Tensor, ranks: Sequence[int], group: Sequence[int]) -> Penalties:
    """Penalties from some clients that share something, two or more.

    Args:
        stack: blocks of joint norm one, (n_modules, rows, sum(ranks)).
    """
    members = stack[:, :, client_columns(ranks, group)]
    bar = 1.0 / len(stack) ** 0.5  # norm of one client's block in one module
    dims, above, below = [], [], []
    values = left_singular(members)[1]
    for singular in values:
        dims.append(dim := shared_dim(singular, bar))
        if dim:
            above.append(float(singular[dim - 1]))
            below.append(max(bar, float(singular[dim]) if dim < len(singular) else 0.0))
    if not above:
        return Penalties(bar, 1.0, tuple(dims))
    low_rank = float(torch.tensor(above).median() * torch.tensor(below).median()) ** 0.5
    energy = float((values**2 - low_rank**2).clamp_min(0.0).sum())
    captured = min(1.0, energy / len(group))
    return Penalties(low_rank, (1.0 - LINE**2 * captured) ** 0.5, tuple(dims))


def recover_stable(
    stack: Tensor, ranks: Sequence[int], group: Sequence[int], *, tol: float = 1e-6
) -> Shared:
    """Solve the stable program over all clients with penalties estimated from `group`.

    Args:
        stack: blocks of joint norm one, (n_modules, rows, sum(ranks)).
        tol: relative duality gap at which the solver stops.
    """
    penalties = estimate_penalties(stack, ranks, group)
    solution = solve_stable(
        stack, ranks, penalties.low_rank, penalties.block, max_iter=300, tol=tol
    )
    kept = tuple(k for k, s in enumerate(solution.block_norms.tolist()) if s == 0.0)
    inside = captured_by_space(stack, ranks, kept, penalties.subspace_dims).mean(0)
    typical = float(inside[list(group)].median())
    members = tuple(k for k in kept if float(inside[k]) >= LINE**2 * typical)
    return Shared(solution, penalties, kept, members)


def captured_by_space(
    stack: Tensor, ranks: Sequence[int], members: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """Share of each client's energy inside the leading directions of the other members.

    The directions are refitted on the members, because the columns of L are tilted towards
    outliers with decaying spectra; for each client without itself.

    Args:
        dims: how many directions, per module.

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a zero block.
    """
    captured = stack.new_zeros(len(stack), len(ranks))
    together = stack[:, :, client_columns(ranks, members)]
    whole = together @ together.mT
    leading = torch.arange(whole.shape[1]) < torch.tensor(list(dims))[:, None]
    of_all = _directions(whole)
    for k in range(len(ranks)):
        if all(j == k for j in members):
            continue
        block = stack[:, :, client_columns(ranks, [k])]
        basis = _directions(whole - block @ block.mT) if k in members else of_all
        inside = ((basis.mT @ block).square().sum(-1) * leading).sum(-1)
        energy = block.square().sum((1, 2))
        captured[:, k] = torch.where(energy > 0, (inside / energy).clamp(0.0, 1.0), 0.0)
    return captured


def _directions(squares: Tensor) -> Tensor:
    """Eigenvectors of every module, those of the largest eigenvalues first."""
    vectors: Tensor = torch.linalg.eigh(squares).eigenvectors
    return vectors.flip(-1)
