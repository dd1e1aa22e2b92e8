"""The numbers behind a verdict: alignment, off-subspace share, norms, place in the subspace.

Each is anchored in absolute terms (the collaborative set's own level, its median norm, its
typical distance), never in a rank or a z-score among few clients, and each holds a client
against the *other* members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.collaborate import columns_of
from clair_cli.maths.evidence import Evidence
from clair_cli.maths.groups import MIN_MODULES, Alignment, PairLevels, alignment

# Below this many members a module's spread is not known well enough to single one out.
MIN_MEMBERS = 6
# A module this far below what the client's other modules lead to expect is odd.
ODD_RATIO = 0.25


@dataclass(frozen=True)
class Scores:
    """One client's scores; NaN where a number does not exist.

    Attributes:
        alignment: similarity to the set over the set's own level, with its standard error.
        separation: share of comparisons in which a pair inside the set is more similar than
            the client is to a member; 1 when it is clearly outside, 0.5 (nothing shown) with
            fewer than three other members.
        captured: energy of the client's unit-norm update inside the subspace that the other
            members share, 0 to 1.
        captured_ratio: the same over the members' median.
        norm: of the whole update, weight units. norm_ratio: over the set's median.
        module_norm_ratio: largest norm in one module over the set's median there.
        core_distance: distance of U' D V from the members' mean core over their median one;
            NaN with few modules.
        effective_rank_ratio: directions its energy is spread over, over the members' median
            (the median over modules of that ratio).
        odd_modules: indices of modules in which an otherwise aligned client is not.
        module_similarity: to the other members in each module, (n_modules,).
        module_captured: as `captured`, per module, (n_modules,).
    """

    alignment: Alignment
    separation: float
    captured: float
    captured_ratio: float
    norm: float
    norm_ratio: float
    module_norm_ratio: float
    core_distance: float
    effective_rank_ratio: float
    odd_modules: tuple[int, ...]
    module_similarity: Tensor
    module_captured: Tensor


def whole_norms(norms: Tensor) -> Tensor:
    """Norm of each client's whole update from its modules', (n_clients,), without overflow."""
    largest = norms.amax(0)
    scaled = norms / torch.where(largest > 0, largest, 1.0)
    whole: Tensor = largest * torch.linalg.vector_norm(scaled, dim=0)
    return whole


def captured_energy(
    stack: Tensor, ranks: Sequence[int], members: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """Share of each client's unit-norm block inside the subspace of the *other* members.

    Args:
        stack: cores, (n_modules, rows, sum(ranks)), any common scale of the blocks.
        dims: shared dimensions per module, refitted on the members without the client.

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a zero block.
    """
    result = torch.zeros(len(stack), len(ranks), dtype=stack.dtype)
    for k in range(len(ranks)):
        others = [j for j in members if j != k]
        if not others:
            continue
        basis, _, _ = torch.linalg.svd(stack[:, :, columns_of(ranks, others)], full_matrices=False)
        block = stack[:, :, columns_of(ranks, [k])]
        inside = (basis.mT @ block).square().sum(-1)
        energy = block.square().sum((1, 2))
        for m, dim in enumerate(dims):
            if float(energy[m]) > 0:
                result[m, k] = float((inside[m, :dim].sum() / energy[m]).clamp(0.0, 1.0))
    return result


def captured_by_mean(columns: Tensor, members: Sequence[int]) -> Tensor:
    """Share of each client's energy along the mean of the *other* members (matrix stacking).

    The shared subspace is a line there. Its leading singular vector would do but for two
    clients that are much alike, who make a stronger one between them.

    Args:
        columns: one unit column (or a zero one) per client, (n_modules, rows, n_clients).

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a client opposite to the mean.
    """
    index = list(members)
    total = columns[:, :, index].sum(-1, keepdim=True)
    own = torch.zeros(columns.shape[-1], dtype=columns.dtype)
    own[index] = 1.0
    others = total - columns * own
    inner = (others * columns).sum(1).clamp_min(0.0)
    sizes = others.square().sum(1) * columns.square().sum(1)
    captured: Tensor = torch.where(sizes > 0, inner.square() / sizes.clamp_min(1e-300), 0.0)
    return captured.clamp_max(1.0)


def _median_ratio(values: Tensor, members: Sequence[int]) -> Tensor:
    """Values over the members' median (NaN where that is zero)."""
    median = values[..., list(members)].median(dim=-1, keepdim=True).values
    return torch.where(median > 0, values / torch.where(median > 0, median, 1.0), torch.nan)


def core_distances(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Distance of each client's core U' D V to the other members' mean, over their median.

    Norms are in units of the members' median norm per module, so that size counts. U and V
    are the leading directions of the members' mean core that hold 90 % of its energy.

    Returns:
        Shape (n_clients,); NaN with fewer than two members.
    """
    n_clients = evidence.norms.shape[1]
    if len(members) < 3:
        return torch.full((n_clients,), torch.nan, dtype=torch.float64)
    ratio = torch.nan_to_num(_median_ratio(evidence.norms, members), nan=0.0)
    cores = evidence.cores * ratio[:, :, None, None]
    index = list(members)
    mean = cores[:, index].mean(1)
    left, singular, right = torch.linalg.svd(mean)
    energy = singular.square().cumsum(-1)
    inside = (energy - singular.square() < 0.9 * energy[:, -1:]).to(cores.dtype)
    left, right = left * inside[:, None, :], right * inside[:, :, None]
    cores = left.mT[:, None] @ cores @ right.mT[:, None]
    total = cores[:, index].sum(1)
    distances = torch.empty(n_clients, dtype=torch.float64)
    for k in range(n_clients):
        own = len(index) - 1 if k in members else len(index)
        others = (total - cores[:, k] if k in members else total) / own
        distances[k] = torch.linalg.vector_norm(cores[:, k] - others)
    return _median_ratio(distances, members)


def module_similarities(levels: PairLevels, client: int, members: Sequence[int]) -> Tensor:
    others = [j for j in members if j != client]
    return torch.from_numpy(levels.between([client], others))


def _separation(levels: PairLevels, client: int, members: Sequence[int]) -> float:
    others = [j for j in members if j != client]
    return levels.separation(others, [client]) if len(others) > 2 else 0.5


def odd_modules(similarities: Tensor, client: int, members: Sequence[int]) -> tuple[int, ...]:
    """Modules in which one client is unlike the others although it is like them elsewhere.

    Below ODD_RATIO of the level that the client's other modules lead to expect, and as many
    of the members' standard deviations below their mean as one normal variable in
    n_modules x n_clients would reach about once in a thousand cohorts, doubled: spreads of
    few members are rough.

    Args:
        similarities: of every client to the other members, (n_modules, n_clients).
    """
    others = [j for j in members if j != client]
    if len(others) < MIN_MEMBERS or len(similarities) < 4:
        return ()
    mean, spread = similarities[:, others].mean(1), similarities[:, others].std(1)
    value = similarities[:, client]
    expected = mean * (value / mean).nanmedian()
    looks = float(similarities.numel())
    bar = 2.0 * (2.0 * torch.log(torch.tensor(1000.0 * looks))).sqrt()
    odd = (mean > 0) & (value < ODD_RATIO * expected) & (value < expected - bar * spread)
    return tuple(int(m) for m in torch.nonzero(odd).flatten())


def score_clients(
    evidence: Evidence,
    levels: PairLevels,
    members: Sequence[int],
    captured: Tensor,
    module_captured: Tensor,
) -> list[Scores]:
    """All scores of all clients against a collaborative set.

    Args:
        members: the set.
        captured: from `captured_energy`, (n_modules, n_clients); one row if the modules were
            stacked on top of each other. module_captured: the same module by module.
    """
    n_clients = evidence.norms.shape[1]
    similarities = torch.stack(
        [module_similarities(levels, k, members) for k in range(n_clients)], dim=1
    )
    whole = whole_norms(evidence.norms)
    norm_ratio = _median_ratio(whole, members)
    per_module = _median_ratio(evidence.norms, members)
    distances = core_distances(evidence, members)
    directions = _median_ratio(evidence.effective_ranks, members)
    mean_captured = captured.mean(0)
    captured_ratio = _median_ratio(mean_captured, members)
    result = []
    for k in range(n_clients):
        in_module = per_module[:, k][~torch.isnan(per_module[:, k])]
        result.append(
            Scores(
                alignment(levels, k, members),
                _separation(levels, k, members),
                float(mean_captured[k]),
                float(captured_ratio[k]),
                float(whole[k]),
                float(norm_ratio[k]),
                float(in_module.max()) if len(in_module) else float("nan"),
                float(distances[k]) if len(similarities) >= MIN_MODULES else float("nan"),
                float(directions[:, k].nanmedian()),
                odd_modules(similarities, k, members),
                similarities[:, k],
                module_captured[:, k],
            )
        )
    return result
