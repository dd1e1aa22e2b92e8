"""How large a client's delta weights may be beside the members'.

A client of three times the learning rate is no attack, and the largest of many modules' norms lies
far from the median by chance alone: the bounds grow with the round's own spread and with the
number of norms compared, so that with probability 1 - ERROR_RATE no honest norm exceeds them. The
spread is a median, which fewer than half of the clients cannot move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.judge.client_scores import (
    largest_ratio,
    median_ratio,
    module_ratios,
    whole_norms,
)
from clair_cli.maths.judge.thresholds import ERROR_RATE, MODULE_NORM_CAP, NORM_CAP

# Standard deviation of a normal variable over the median distance from its median.
SIGMA = 1.4826
# Norms over the median below this are no update at all: the arithmetic of a merge has not more.
VANISHING = 1e-3


@dataclass(frozen=True)
class Sizes:
    """Norms of all clients over the members' median.

    Attributes:
        whole: of all modules together, (n_clients,); NaN where the median is zero.
        module: the largest of any module, (n_clients,); NaN where no norm is typical.
        whole_cap, module_cap: what counts at most.
    """

    whole: Tensor
    module: Tensor
    whole_cap: float
    module_cap: float

    def over(self, client: int) -> float:
        """The larger of a client's two ratios in units of its cap's log: above 1 it is capped;
        infinite where a ratio is not known."""
        whole, module = float(self.whole[client]), float(self.module[client])
        if math.isnan(whole) or math.isnan(module):
            return math.inf
        return max(
            math.log(max(whole, 1e-300)) / math.log(self.whole_cap),
            math.log(max(module, 1e-300)) / math.log(self.module_cap),
        )

    def factor(self, client: int, whole_cap: float, module_cap: float) -> float:
        """Factor on the weight that makes a client count no more than caps allow, 0 to 1."""
        sizes = (float(self.whole[client]) / whole_cap, float(self.module[client]) / module_cap)
        return 1.0 / max(x for x in (1.0, *sizes) if not math.isnan(x))


def sizes_of(evidence: Evidence, members: Sequence[int]) -> Sizes:
    """Norms of all clients beside the members'.

    Args:
        members: the clients of the cohort.
    """
    return sizes_of_norms(evidence.norms, members)


def sizes_of_norms(norms: Tensor, members: Sequence[int]) -> Sizes:
    """As `sizes_of`, of norms alone, (n_modules, n_clients)."""
    whole = median_ratio(whole_norms(norms), members)
    ratios = module_ratios(norms, members)
    each = ratios[:, list(members)]
    known = int((each > 0).any(1).sum())  # one client is the median of each
    return Sizes(
        whole, largest_ratio(ratios),
        allowed(whole[list(members)], NORM_CAP), allowed(each.flatten(), MODULE_NORM_CAP, known),
    )  # fmt: skip


def allowed(ratios: Tensor, least: float, medians: int = 0) -> float:
    """What ratios to a median may reach: as far as so many log-normal ones with this median
    distance from it do with probability ERROR_RATE, and at least `least`.

    Args:
        ratios: of the members, NaN and 0 where there is none.
        medians: how many of these to leave out as of a client that is the median itself: they say
            nothing of the spread, and of few clients make it too small.
    """
    from scipy.special import ndtri  # the normal quantile; a fifth of a second

    logs = ratios[ratios > 0].log()
    apart = logs.abs().sort().values[medians:]
    if not len(apart):
        return least
    spread = SIGMA * float(apart.median())
    return max(least, math.exp(float(ndtri(1.0 - ERROR_RATE / len(logs))) * spread))
