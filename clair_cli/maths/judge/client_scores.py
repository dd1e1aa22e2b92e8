"""The scores that need only the evidence and the members of the collaborative set.

They measure the size of a delta weight compared with the members', and the number of directions
that it spreads over. Each function takes the evidence of all modules and the members, and returns
one number per client, (n_clients,), NaN where the number does not exist. All scores reach the
report: a new one is a function and a line in `CLIENT_SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence


def effective_rank_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Directions the energy is spread over, over the members' median (median over modules)."""
    return median_ratio(evidence.effective_ranks, members).nanmedian(0).values


# Least number of members with a nonzero delta weight in a module for a median of their norms.
MIN_HOLDERS = 3


def median_ratio(values: Tensor, members: Sequence[int]) -> Tensor:
    """Values over the members' median (NaN where that is zero)."""
    median = values[..., list(members)].median(dim=-1, keepdim=True).values
    return torch.where(median > 0, values / torch.where(median > 0, median, 1.0), torch.nan)


def whole_norms(norms: Tensor) -> Tensor:
    """Norm of each client's delta weights of all modules together, (n_clients,), without overflow.

    Args:
        norms: in each module, (n_modules, n_clients).
    """
    largest = norms.amax(0)
    scaled = norms / torch.where(largest > 0, largest, 1.0)
    whole: Tensor = largest * torch.linalg.vector_norm(scaled, dim=0)
    return whole


def total_norm(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Norm of each client's delta weights of all modules together, weight units."""
    return whole_norms(evidence.norms)


def norm_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """`total_norm` over the members' median."""
    return median_ratio(whole_norms(evidence.norms), members)


def typical_norms(norms: Tensor, members: Sequence[int]) -> Tensor:
    """Median norm in each module of the members with a nonzero delta weight, (n_modules,).

    A module with fewer than MIN_HOLDERS such members gets the largest median of the other modules,
    or NaN if no module has one.
    """
    own = norms[:, list(members)]
    has = own > 0
    median: Tensor = torch.where(has, own, torch.nan).nanmedian(dim=1).values
    few = has.sum(1) < MIN_HOLDERS
    largest = torch.where(few, -torch.inf, median).amax()
    return torch.where(few, torch.where(largest > 0, largest, torch.nan), median)


def module_ratios(norms: Tensor, members: Sequence[int]) -> Tensor:
    """Norms in each module over the module's typical norm, NaN where none is typical, (n_modules,
    n_clients)."""
    typical = typical_norms(norms, members)
    if bool(typical.isnan().all()):
        return median_ratio(norms, members)
    return norms / typical[:, None]


def module_norm_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Each client's largest norm in one module over the module's typical norm; NaN where no norm is
    typical."""
    return largest_ratio(module_ratios(evidence.norms, members))


def largest_ratio(ratios: Tensor) -> Tensor:
    """The largest of each column, NaN where it has NaN alone."""
    largest = torch.nan_to_num(ratios, nan=-torch.inf).amax(0)
    return torch.where(torch.isneginf(largest), torch.nan, largest)


ClientScore = Callable[[Evidence, Sequence[int]], Tensor]

CLIENT_SCORES: dict[str, ClientScore] = {
    "norm": total_norm,
    "norm_ratio": norm_ratio,
    "module_norm_ratio": module_norm_ratio,
    "effective_rank_ratio": effective_rank_ratio,
}
