"""The collaborative set and the shared subspace, out of the decomposition.

The penalties come from the stack itself. Every client's block has norm one over all modules,
so a direction of the stack with a singular value above 1 is one that no client can make alone:

    lam1 = sqrt(sigma_d * max(1, sigma_{d+1}))      d: where the group's spectrum falls most
    lam2 = sqrt(1 - LONER_RATIO^2 * captured)       captured: energy that L takes of a typical
                                                    member's block at this lam1

lam2 <= 1 <= lam1 holds by construction, which is the window of theory: one unrelated block can't
enter L, while a member's residual sqrt(1 - captured) stays below lam2. Many unrelated blocks in
little room can add up, which is why the set is filtered by a refit (judge.py). The group that
the similarities suggest is only the starting point: the program is convex, and is solved over
every client that is not in another coherent group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.decompose import Decomposition, solve_stable
from clair_cli.maths.groups import LONER_RATIO


@dataclass(frozen=True)
class Penalties:
    """Estimated penalties of the stable program, for blocks of unit norm.

    Attributes:
        low_rank: lam1, at least 1. block: lam2, at most 1.
        subspace_dims: shared dimensions in each module; 0 where nothing is shared.
        captured: share of a typical member's energy that L takes at lam1, 0 to 1.
    """

    low_rank: float
    block: float
    subspace_dims: tuple[int, ...]
    captured: float


def columns_of(ranks: Sequence[int], clients: Sequence[int]) -> Tensor:
    """Indices of some clients' columns in a stack."""
    ends = torch.tensor([0, *ranks]).cumsum(0)
    return torch.cat([torch.arange(int(ends[k]), int(ends[k + 1])) for k in clients])


def shared_dim(singular: Tensor, bar: float) -> int:
    """Number of leading singular values above `bar`, up to where they fall most.

    Args:
        singular: descending, (n,).
        bar: what one client alone can reach.
    """
    above = int((singular > bar).sum())
    if above == 0:
        return 0
    floor = torch.finfo(singular.dtype).eps * singular[0]
    tail = torch.cat([singular[1:], singular.new_zeros(1)])[:above].clamp_min(floor)
    falls = singular[:above] / torch.maximum(tail, bar * torch.ones_like(tail) * 0.5)
    return int(falls.argmax()) + 1


def estimate_penalties(stack: Tensor, ranks: Sequence[int], group: Sequence[int]) -> Penalties:
    """Penalties for a stack from the group that the pairwise similarities suggest.

    Args:
        stack: cores of all clients scaled to joint norm one, (n_modules, rows, sum(ranks)).
        group: at least two clients. In the matrix stacking (one column each) the line of their
            mean counts as shared even where two of them make a stronger direction.
    """
    members = stack[:, :, columns_of(ranks, group)]
    bar = 1.0 / len(stack) ** 0.5  # one client's whole block in one module
    dims, above, below = [], [], []
    left, values, _ = torch.linalg.svd(members, full_matrices=False)
    for basis, singular, stacked in zip(left, values, members, strict=True):
        dim = shared_dim(singular, bar)
        if len(stacked) and stacked.shape[1] == len(group):  # matrix stacking: one common line
            dim = max(dim, int((basis.mT @ stacked.sum(-1)).abs().argmax()) + 1)
        dims.append(dim)
        if dim:
            above.append(float(singular[dim - 1]))
            below.append(max(bar, float(singular[dim]) if dim < len(singular) else 0.0))
    if not above:
        return Penalties(bar, 1.0, tuple(dims), 0.0)
    low_rank = float(torch.tensor(above).median() * torch.tensor(below).median()) ** 0.5
    energy = 0.0
    for singular in values:
        energy += float((singular**2 - low_rank**2).clamp_min(0.0).sum())
    captured = min(1.0, energy / len(group))
    block = (1.0 - LONER_RATIO**2 * captured) ** 0.5
    return Penalties(low_rank, block, tuple(dims), captured)


@dataclass(frozen=True)
class Collaborative:
    """What the decomposition says about who shares.

    Attributes:
        solution: of the stable program over `clients`.
        penalties: how it was set up.
        clients: who took part, in the order of the solution's blocks.
        kept: those with S_k = 0; after the refit in judge.py, those with LONER_RATIO^2 of the
            typical energy inside the subspace of the *other* members (a client is a large
            part of L, and of its own residual).
    """

    solution: Decomposition
    penalties: Penalties
    clients: tuple[int, ...]
    kept: tuple[int, ...]


def collaborate(
    stack: Tensor,
    ranks: Sequence[int],
    group: Sequence[int],
    clients: Sequence[int],
    *,
    tol: float = 1e-6,
    max_iter: int = 300,
) -> Collaborative:
    """Solve the stable program over `clients` with penalties estimated from `group`.

    Args:
        stack: cores, (n_modules, rows, sum(ranks)); joint norm of each client's block one.
        clients: who takes part: everybody but duplicates and other coherent groups.
    """
    penalties = estimate_penalties(stack, ranks, group)
    part = stack[:, :, columns_of(ranks, clients)]
    part_ranks = [ranks[k] for k in clients]
    solution = solve_stable(
        part, part_ranks, penalties.low_rank, penalties.block, joint=True,
        max_iter=max_iter, tol=tol,
    )  # fmt: skip
    kept = tuple(k for k, s in zip(clients, solution.block_norms.tolist(), strict=True) if s == 0.0)
    return Collaborative(solution, penalties, tuple(clients), kept)


def matrix_core(cosines: Tensor) -> Tensor:
    """The core of the matrix stacking: one unit column per client, all modules on top of
    each other.

    Args:
        cosines: (n_modules, n_clients, n_clients), NaN where a client has no update.

    Returns:
        Shape (1, n_clients, n_clients); a client without any update has a zero column.
    """
    filled = torch.nan_to_num(cosines, nan=0.0)
    gram = filled.sum(0)
    present = gram.diagonal()
    inverse = torch.where(present > 0, present.clamp_min(1e-300).rsqrt(), 0.0)
    gram = gram * inverse[:, None] * inverse[None, :]
    values, vectors = torch.linalg.eigh(gram)
    core: Tensor = (values.clamp_min(0.0).sqrt()[:, None] * vectors.mT).flip(0)
    return core[None]
