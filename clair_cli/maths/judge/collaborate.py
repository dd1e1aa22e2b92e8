"""The decomposition of a cohort into what is shared and the clients that do not share it: a second
opinion beside the loadings, with a certificate.

Every client is one column of norm one, its delta weights of all modules on top of each other. The
shared part is a line then, and the program finds the clients whose columns are not near it. The
penalties come from the columns themselves:

    lam1 = sqrt(sigma_d * max(1, sigma_{d+1}))      d: where the group's spectrum falls most
    lam2 = sqrt(1 - LINE^2 * captured)              captured: energy that L takes of a typical
                                                    member's column at this lam1

lam2 <= 1 <= lam1 holds by construction, which is the window of theory: one unrelated column can't
enter L, while a member's residual sqrt(1 - captured) stays below lam2. The group that the
similarities suggest is only the starting point: the program is convex, and is solved over
all distinct clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.tables import in_blocks
from clair_cli.maths.factors.roots import core_from_gram
from clair_cli.maths.judge.decompose import Decomposition, solve_stable
from clair_cli.maths.judge.prox import left_singular
from clair_cli.maths.judge.thresholds import LINE


@dataclass(frozen=True)
class Penalties:
    """Estimated penalties of the stable program, for columns of unit norm.

    Attributes:
        low_rank: lam1, at least 1.
        block: lam2, at most 1.
        captured: share of a typical member's energy that L takes at lam1, 0 to 1.
    """

    low_rank: float
    block: float
    captured: float


def shared_dim(singular: Tensor, bar: float) -> int:
    """Number of leading singular values above `bar`, up to where they fall most.

    Args:
        singular: descending, (n,).
        bar: largest singular value that one client alone can make.
    """
    above = int((singular > bar).sum())
    if above == 0:
        return 0
    floor = torch.finfo(singular.dtype).eps * singular[0]
    tail = torch.cat([singular[1:], singular.new_zeros(1)])[:above].clamp_min(floor)
    falls = singular[:above] / torch.maximum(tail, bar * torch.ones_like(tail) * 0.5)
    return int(falls.argmax()) + 1


def estimate_penalties(columns: Tensor, group: Sequence[int]) -> Penalties:
    """Penalties for the clients' columns from the group that the similarities suggest.

    Args:
        columns: one of norm one per client, (n, n_clients).
        group: at least two clients. The line of their mean counts as shared even where two of them
            make a stronger direction between them.
    """
    members = columns[:, list(group)]
    left, values = left_singular(members[None])
    basis, singular = left[0], values[0]
    dim = max(shared_dim(singular, 1.0), int((basis.mT @ members.sum(-1)).abs().argmax()) + 1)
    above = float(singular[dim - 1])
    below = max(1.0, float(singular[dim]) if dim < len(singular) else 0.0)
    low_rank = max(1.0, above * below) ** 0.5
    energy = float((singular**2 - low_rank**2).clamp_min(0.0).sum())
    captured = min(1.0, energy / len(group))
    return Penalties(low_rank, (1.0 - LINE**2 * captured) ** 0.5, captured)


@dataclass(frozen=True)
class CollaborativeSet:
    """The clients that share something, by the decomposition.

    Attributes:
        solution: of the stable program over `clients`.
        penalties: with which the program was solved.
        clients: all who took part, in the order of the solution's blocks.
        kept: the clients with S_k = 0.
        captured: share of each client's energy along the line of the *other* members' mean, 0 to 1;
            0 for a client opposite to them, (n_clients,).
    """

    solution: Decomposition
    penalties: Penalties
    clients: tuple[int, ...]
    kept: tuple[int, ...]
    captured: Tensor


def collaborate(
    cosines: Tensor,
    group: Sequence[int],
    clients: Sequence[int],
    *,
    tol: float = 1e-6,
    max_iter: int = 300,
) -> CollaborativeSet:
    """Solve the stable program over `clients` with penalties estimated from `group`.

    Args:
        cosines: of all clients, (n_modules, n_clients, n_clients), NaN where a delta weight is
            zero.
        group: the group that the similarities suggest.
        clients: all who take part: everybody but duplicates and near copies.
        tol: relative duality gap at which the solver stops.
        max_iter: most iterations of the solver.
    """
    columns = joint_columns(cosines)
    penalties = estimate_penalties(columns, group)
    chosen = list(clients)
    solution = solve_stable(
        columns[None][:, :, chosen], [1] * len(chosen), penalties.low_rank, penalties.block,
        max_iter=max_iter, tol=tol,
    )  # fmt: skip
    kept = tuple(k for k, s in zip(chosen, solution.block_norms.tolist(), strict=True) if s == 0.0)
    captured = captured_by_mean((columns.mT @ columns)[None], group)[0]
    return CollaborativeSet(solution, penalties, tuple(chosen), kept, captured)


def joint_columns(cosines: Tensor) -> Tensor:
    """One column per client whose inner products are the cosines summed over modules, of norm one;
    zero for a client whose delta weights are all zero, (n_clients, n_clients)."""
    gram = in_blocks(lambda rows: torch.nan_to_num(cosines[:, rows], nan=0.0).sum(0), cosines.shape)
    present = gram.diagonal()
    inverse = torch.where(present > 0, present.clamp_min(1e-300).rsqrt(), 0.0)
    return core_from_gram((gram * inverse[:, None] * inverse[None, :])[None])[0]


def captured_by_mean(cosines: Tensor, members: Sequence[int]) -> Tensor:
    """Share of each client's energy along the mean of the *other* members.

    Args:
        cosines: of the clients' updates, 0 where one has none, (n_modules, n_clients, n_clients).

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a client opposite to the mean.
    """
    own = torch.zeros(cosines.shape[-1], dtype=cosines.dtype)
    own[list(members)] = 1.0
    energy = cosines.diagonal(dim1=1, dim2=2)
    with_members = cosines @ own  # of each client's update, and the members' sum
    inner = with_members - energy * own
    size = (with_members @ own)[:, None] - own * (2.0 * with_members - energy)  # of others' sum
    sizes = size * energy
    captured: Tensor = torch.where(
        sizes > 0, inner.clamp_min(0.0).square() / sizes.clamp_min(1e-300), 0.0
    )
    return captured.clamp_max(1.0)
