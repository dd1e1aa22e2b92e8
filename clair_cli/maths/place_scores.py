"""Where an update lies inside the shared subspace, and over how many directions it spreads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.evidence import Evidence
from clair_cli.maths.pair_levels import MIN_MODULES
from clair_cli.maths.size_scores import median_ratio


def core_distance(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Distance of each client's core U' D V to the other members' mean, over their median.

    Norms are in units of the members' median norm per module, so that size counts. U and V
    are the leading directions of the members' mean core that hold 90 % of its energy.

    Returns:
        Shape (n_clients,); NaN with fewer than three members or with few modules.
    """
    n_clients = evidence.norms.shape[1]
    if len(members) < 3 or len(evidence.norms) < MIN_MODULES:
        return torch.full((n_clients,), torch.nan, dtype=torch.float64)
    ratio = torch.nan_to_num(median_ratio(evidence.norms, members), nan=0.0)
    cores = evidence.cores * ratio[:, :, None, None]
    index = list(members)
    mean = cores[:, index].mean(1)
    left, singular, right = torch.linalg.svd(mean)
    energy = singular.square().cumsum(-1)
    inside = (energy - singular.square() < 0.9 * energy[:, -1:]).to(cores.dtype)
    dim = int(inside.sum(1).max())
    left, right = (left * inside[:, None, :])[:, :, :dim], (right * inside[:, :, None])[:, :dim]
    # all clients of a module at once; transposed, which no norm minds
    cores = (cores.flatten(1, 2) @ right.mT).unflatten(1, (n_clients, -1)).transpose(2, 3)
    cores = (cores.flatten(1, 2) @ left).unflatten(1, (n_clients, -1))
    total = cores[:, index].sum(1)
    distances = torch.empty(n_clients, dtype=torch.float64)
    for k in range(n_clients):
        own = len(index) - 1 if k in members else len(index)
        others = (total - cores[:, k] if k in members else total) / own
        distances[k] = torch.linalg.vector_norm(cores[:, k] - others)
    return median_ratio(distances, members)


def effective_rank_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Directions the energy is spread over, over the members' median (median over modules)."""
    return median_ratio(evidence.effective_ranks, members).nanmedian(0).values
