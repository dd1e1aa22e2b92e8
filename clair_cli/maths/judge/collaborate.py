"""The collaborative set and the shared subspace, from the decomposition.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.side_cores import SideCores
from clair_cli.maths.factors.roots import core_from_gram
from clair_cli.maths.factors.stack import client_columns
from clair_cli.maths.judge.decompose import Decomposition, solve_stable
from clair_cli.maths.judge.prox import left_singular
from clair_cli.maths.judge.thresholds import LONER_RATIO

# Up to this many clients the program is solved once more without each of them.
LEAVE_ONE_OUT = 64


@dataclass(frozen=True)
class Penalties:
    """Estimated penalties of the stable program, for blocks of unit norm.

    Attributes:
        low_rank: lam1, at least 1.
        block: lam2, at most 1.
        subspace_dims: shared dimensions in each module; 0 where nothing is shared.
        captured: share of a typical member's energy that L takes at lam1, 0 to 1.
    """

    low_rank: float
    block: float
    subspace_dims: tuple[int, ...]
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


def estimate_penalties(
    stack: Tensor, ranks: Sequence[int], group: Sequence[int], *, one_line: bool = False
) -> Penalties:
    """Penalties for a stack from the group that the pairwise similarities suggest.

    Args:
        stack: cores of all clients scaled to joint norm one, (n_modules, rows, sum(ranks)).
        group: at least two clients.
        one_line: matrix stacking: the line of the group's mean counts as shared even where two
            of its members make a stronger direction between them.
    """
    members = stack[:, :, client_columns(ranks, group)]
    bar = 1.0 / len(stack) ** 0.5  # norm of one client's block in one module
    dims, above, below = [], [], []
    left, values = left_singular(members)
    for basis, singular, stacked in zip(left, values, members, strict=True):
        dim = shared_dim(singular, bar)
        if one_line:
            dim = max(dim, int((basis.mT @ stacked.sum(-1)).abs().argmax()) + 1)
        dims.append(dim)
        if dim:
            above.append(float(singular[dim - 1]))
            below.append(max(bar, float(singular[dim]) if dim < len(singular) else 0.0))
    if not above:
        return Penalties(bar, 1.0, tuple(dims), 0.0)
    low_rank = float(torch.tensor(above).median() * torch.tensor(below).median()) ** 0.5
    energy = float((values**2 - low_rank**2).clamp_min(0.0).sum())
    captured = min(1.0, energy / len(group))
    block = (1.0 - LONER_RATIO**2 * captured) ** 0.5
    return Penalties(low_rank, block, tuple(dims), captured)


@dataclass(frozen=True)
class CollaborativeSet:
    """The clients that share something, by the decomposition.

    Attributes:
        solution: of the stable program over `clients`.
        penalties: with which the program was solved.
        clients: all who took part, in the order of the solution's blocks.
        kept: the clients with S_k = 0.
        captured: share of each client's energy inside the low-rank part of the *others*, 0 to
            1; (n_modules, n_clients). The matrix stacking has one row for all modules together, in
            which a client opposite to the others has 0.
    """

    solution: Decomposition
    penalties: Penalties
    clients: tuple[int, ...]
    kept: tuple[int, ...]
    captured: Tensor


def collaborate(
    cores: SideCores,
    group: Sequence[int],
    clients: Sequence[int],
    *,
    one_line: bool = False,
    tol: float = 1e-6,
    max_iter: int = 300,
) -> CollaborativeSet:
    """Solve the stable program over `clients` with penalties estimated from `group`.

    Args:
        cores: of all clients; each client's block has joint norm one.
        group: the coherent group that the similarities suggest.
        clients: all who take part: everybody but duplicates and members of other coherent groups.
        one_line: matrix stacking: `cores` is a `matrix_core`, with one column per client.
        tol: relative duality gap at which the solver stops.
        max_iter: most iterations of the solver.
    """
    stack, ranks = cores.stack, cores.ranks

    def solve(part: Sequence[int]) -> tuple[Penalties, Decomposition]:
        penalties = estimate_penalties(
            stack, ranks, [k for k in group if k in part], one_line=one_line
        )
        return penalties, solve_stable(
            stack[:, :, client_columns(ranks, part)], [ranks[k] for k in part],
            penalties.low_rank, penalties.block,
            outside=cores.outside[:, list(part)], max_iter=max_iter, tol=tol,
        )  # fmt: skip

    penalties, solution = solve(clients)
    kept = tuple(k for k, s in zip(clients, solution.block_norms.tolist(), strict=True) if s == 0.0)
    if one_line:
        captured = _captured_by_line(stack, group, clients, solution, solve)
    else:
        basis = kept if len(kept) >= 3 else group
        captured = captured_by_space(cores, basis, penalties.subspace_dims)
        typical = LONER_RATIO**2 * captured.mean(0)[list(group)].median()
        cleaned = tuple(k for k in basis if float(captured.mean(0)[k]) >= typical)
        if len(cleaned) >= 3:  # many outliers may have slipped into L together: refit without
            captured = captured_by_space(cores, cleaned, penalties.subspace_dims)
    return CollaborativeSet(solution, penalties, tuple(clients), kept, captured)


def _captured_by_line(
    stack: Tensor,
    group: Sequence[int],
    clients: Sequence[int],
    solution: Decomposition,
    solve: Callable[[Sequence[int]], tuple[Penalties, Decomposition]],
) -> Tensor:
    """Matrix stacking: energy along the mean column of the low-rank part without the client.

    L holds what the clients share, and the columns of outliers are in S, so the mean column of L is
    a robust consensus. With up to LEAVE_ONE_OUT clients the program is solved again without each of
    them, because a client must not be compared with an L that it is a large part of.
    """
    captured = torch.zeros(1, stack.shape[-1], dtype=stack.dtype)
    for k in range(stack.shape[-1]):
        others = [j for j in clients if j != k]
        low_rank = solution.low_rank[0][:, [i for i, j in enumerate(clients) if j != k]]
        if k in clients and len(clients) <= LEAVE_ONE_OUT and len(set(group) - {k}) > 1:
            low_rank = solve(others)[1].low_rank[0]
        line = low_rank[:, [i for i, j in enumerate(others) if j in group]].sum(-1)
        column = stack[0, :, k]
        size = float(line.square().sum() * column.square().sum())
        if size > 0:
            captured[0, k] = min(1.0, max(0.0, float(line @ column)) ** 2 / size)
    return captured


def captured_by_space(cores: SideCores, members: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Other stackings: share of each client's energy inside the subspace of the other members.

    Args:
        members: clients with S_k = 0. The subspace is refitted on them, because the columns of L
            are tilted towards outliers with decaying spectra; for each client without itself.
        dims: shared dimensions per module.

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a zero block.
    """
    stack, ranks = cores.stack, cores.ranks
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
        inside = (basis.mT @ block).square().sum(-1) * leading
        energy = block.square().sum((1, 2)) + cores.outside[:, k]
        share = (inside.sum(-1) / energy).clamp(0.0, 1.0)
        captured[:, k] = torch.where(energy > 0, share, 0.0)
    return captured


def _directions(squares: Tensor) -> Tensor:
    """Eigenvectors of every module, those of the largest eigenvalues first."""
    vectors: Tensor = torch.linalg.eigh(squares).eigenvectors
    return vectors.flip(-1)


def matrix_core(cosines: Tensor) -> SideCores:
    """The core of the matrix stacking: one unit column per client, all modules on top of
    each other.

    Args:
        cosines: (n_modules, n_clients, n_clients), NaN where a delta weight is zero.

    Returns:
        A stack (1, n_clients, n_clients); a client whose delta weights are all zero has a zero
        column.
    """
    gram = torch.nan_to_num(cosines, nan=0.0).sum(0)
    present = gram.diagonal()
    inverse = torch.where(present > 0, present.clamp_min(1e-300).rsqrt(), 0.0)
    core = core_from_gram((gram * inverse[:, None] * inverse[None, :])[None])[0]
    return SideCores(core, core.new_zeros(1, len(gram)), (1,) * len(gram))
