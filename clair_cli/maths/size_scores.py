"""How large an update is, beside those of the collaborative set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.evidence import Evidence

# Beyond these, a client counts as if its norm were that, whatever its verdict: no direction is
# free. Honest clients measured at most 1.23 (whole) and 2.02 (in one module).
NORM_CAP, MODULE_NORM_CAP = 1.5, 2.5
# Members that must have an update in a module for its norms to have a median.
MIN_HOLDERS = 3


def median_ratio(values: Tensor, members: Sequence[int]) -> Tensor:
    """Values over the members' median (NaN where that is zero)."""
    median = values[..., list(members)].median(dim=-1, keepdim=True).values
    return torch.where(median > 0, values / torch.where(median > 0, median, 1.0), torch.nan)


def whole_norms(norms: Tensor) -> Tensor:
    """Norm of each client's whole update from its modules', (n_clients,), without overflow."""
    largest = norms.amax(0)
    scaled = norms / torch.where(largest > 0, largest, 1.0)
    whole: Tensor = largest * torch.linalg.vector_norm(scaled, dim=0)
    return whole


def norm(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Norm of the whole update, weight units."""
    return whole_norms(evidence.norms)


def norm_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """The same over the members' median."""
    return median_ratio(whole_norms(evidence.norms), members)


def typical_norms(norms: Tensor, members: Sequence[int]) -> Tensor:
    """Median norm in each module of the members that have an update there, (n_modules,).

    Fewer than MIN_HOLDERS are no measure for one another: there it is the largest of the other
    modules' medians; NaN where no module has one.
    """
    own = norms[:, list(members)]
    has = own > 0
    median: Tensor = torch.where(has, own, torch.nan).nanmedian(dim=1).values
    few = has.sum(1) < MIN_HOLDERS
    largest = torch.where(few, -torch.inf, median).amax()
    return torch.where(few, torch.where(largest > 0, largest, torch.nan), median)


def module_norm_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Largest norm in one module over what is typical there; NaN where nothing is known."""
    typical = typical_norms(evidence.norms, members)
    if bool(typical.isnan().all()):
        ratios = median_ratio(evidence.norms, members)
    else:
        ratios = evidence.norms / typical[:, None]
    largest = torch.nan_to_num(ratios, nan=-torch.inf).amax(0)
    return torch.where(torch.isneginf(largest), torch.nan, largest)
