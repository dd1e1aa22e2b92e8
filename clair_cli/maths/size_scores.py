"""How large an update is, beside those of the collaborative set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.evidence import Evidence

# Beyond these, a client counts as if its norm were that, whatever its verdict: no direction is
# free. Honest clients measured at most 1.23 (whole) and 2.02 (in one module).
NORM_CAP, MODULE_NORM_CAP = 1.5, 2.5


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


def module_norm_ratio(evidence: Evidence, members: Sequence[int]) -> Tensor:
    """Largest norm in one module over the members' median there; NaN where none is known."""
    ratios = median_ratio(evidence.norms, members)
    largest = torch.nan_to_num(ratios, nan=-torch.inf).amax(0)
    return torch.where(torch.isneginf(largest), torch.nan, largest)
