"""One common factor of the clients' similarities, and how much of it each client has.

What honest clients have in common makes the similarity of two of them the product of what each has
of it: value_jk = l_j l_k + error. A client's *loading* is its l from its pairs with the other
members, over the typical one: about 1 for a member, 0 for an unrelated client, below 0 for an
opposite one. Errors are of the members' own pairs, together with the variance by chance, which is
known (`pairs.py`).

Source: C. Spearman, "General intelligence, objectively determined and measured", American Journal
of Psychology 15, 1904.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.thresholds import ERROR_RATE, LINE

# Degrees of freedom that the variance by chance counts for beside the one that is seen.
PRIOR = 12.0
# Most steps of the factor's iteration; every how many it may end; and the change of a loading over
# the largest at its end.
_STEPS, _LOOK, _ERROR = 200, 4, 1e-7
# Up to this many members each is held against a factor that it had no part in.
_LEAVE_ONE_OUT = 64


def one_factor(pairs: Pairs, members: Tensor, start: Tensor | None = None) -> Tensor:
    """Loadings l of one common factor of some clients, value = l l' where it is known. None is
    more than a client's similarity to itself explains: else one client that has mixed some others
    would be all that they share (a Heywood case).

    Args:
        members: 1 for those clients, 0 for the others, (n,); or of many sets at once, (n_sets, n).
        start: loadings to begin with, (n,); else see `_start`.

    Returns:
        The shape of `members`; 0 for the clients that are no members. Of the two signs the one of
        `start`; by itself the one that most similarities have, or, where opposite clients leave
        these no positive sum, most clients.
    """
    first, unsigned = _start(pairs, members) if start is None else (start, None)
    loadings = _settled(pairs, members, first * members)
    if unsigned is None:
        return loadings
    fewer = (loadings > 0).sum(-1, keepdim=True) < (loadings < 0).sum(-1, keepdim=True)
    return torch.where(unsigned & fewer, -loadings, loadings)


def _settled(pairs: Pairs, members: Tensor, first: Tensor) -> Tensor:
    """The loadings that the iteration ends with, of the shape of `first`. All but the products is
    numpy's, in place: with a dozen clients most of torch's time would be that of its calls."""
    loadings = first.reshape(-1, first.shape[-1]).numpy().copy()
    fitted, other = np.empty_like(loadings), np.empty_like(loadings)
    of_loadings, of_fitted, of_other = map(torch.from_numpy, (loadings, fitted, other))
    inside = members.numpy()
    most = np.inf if pairs.whole is None else pairs.whole.clamp_min(0.0).sqrt().numpy()
    with np.errstate(all="ignore"):  # a NaN ends it
        for step in range(1, _STEPS + 1):
            np.square(loadings, out=fitted)
            torch.mm(of_fitted, pairs.known, out=of_other)
            torch.mm(of_loadings, pairs.value, out=of_fitted)
            fitted /= np.maximum(other, 1e-300, out=other)
            fitted *= inside
            np.minimum(np.maximum(fitted, -most, out=fitted), most, out=fitted)
            np.subtract(fitted, loadings, out=other)
            loadings += fitted
            loadings *= 0.5
            if step % _LOOK == 0:
                moved, size = np.abs(other).max(-1), np.abs(loadings).max(-1)
                if not (moved > _ERROR * size).any():
                    break
    return of_loadings.reshape(first.shape)


def _start(pairs: Pairs, members: Tensor) -> tuple[Tensor, Tensor]:
    """Loadings by the centroid method; where opposite clients leave no positive sum, the
    similarities to the client that has most of them. And where that is, (..., 1)."""
    sums = (members @ pairs.value) * members
    total = sums.sum(-1, keepdim=True)
    most = (members * (members @ pairs.value.square())).argmax(-1)
    column = pairs.value[most]
    column = column.scatter(-1, most[..., None], column.abs().amax(-1, keepdim=True))
    size = column.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    centroid = sums * total.clamp_min(1e-300).rsqrt()
    return torch.where(total > 0, centroid, column * size.rsqrt()), total <= 0


@dataclass(frozen=True)
class Loadings:
    """How much every client has of what the members have in common.

    Attributes:
        ratio: over the members' typical loading, each from pairs with other members, (n,).
        se: standard error of `ratio`, (n,).
        degrees: of freedom of the errors, for Student's t.
        level: similarity of two typical members in deviations by chance, 0 or more.
        p_one: probability by chance of errors as large as those of the members' pairs, 0 to 1:
            small where one thing in common does not explain all of them.
        spread: standard deviation of those errors, over the similarity of two typical members.
    """

    ratio: Tensor
    se: Tensor
    degrees: float
    level: float
    p_one: float = 1.0
    spread: float = 0.0

    @cached_property
    def bar(self) -> float:
        """Standard errors below the line from which on a client is said to lie below it."""
        from scipy.special import stdtrit  # Student's t; a fifth of a second

        return float(stdtrit(self.degrees, 1.0 - ERROR_RATE))

    @cached_property
    def depth(self) -> Tensor:
        """How many standard errors each client lies below LINE, (n,)."""
        return (LINE - self.ratio) / self.se

    def is_below(self, client: int) -> bool:
        """Whether a client has clearly less than LINE of the typical loading."""
        return not float(self.depth[client]) <= self.bar  # also for NaN

    def is_above(self, client: int) -> bool:
        """Whether a client has clearly more than LINE of the typical loading."""
        return float(self.depth[client]) < -self.bar

    def is_shown(self, client: int) -> bool:
        """Whether a client clearly shares anything of it."""
        return float(self.ratio[client]) > self.bar * float(self.se[client])

    def is_opposite(self, client: int) -> bool:
        """Whether a client's loading is clearly below zero."""
        return float(self.ratio[client] + self.bar * self.se[client]) < 0.0

    @property
    def p_line(self) -> Tensor:
        """Probability of a loading as low as this one for a client that has just LINE of the
        typical one, 0 to 1, (n,)."""
        from scipy.special import stdtr

        return torch.from_numpy(stdtr(self.degrees, -self.depth.numpy()))

    @property
    def power(self) -> Tensor:
        """Probability that each client, were it unrelated to the others, would be found to lie
        below LINE, 0 to 1, (n,)."""
        from scipy.special import ndtr

        return torch.from_numpy(ndtr((LINE / self.se - self.bar).numpy()))


def loadings(pairs: Pairs, members: Sequence[int], unlike: Sequence[int] = ()) -> Loadings:
    """Every client's loading on what the members have in common.

    Args:
        members: two clients or more.
        unlike: clients that share nothing: their pairs with members show errors too.
    """
    core = torch.zeros(len(pairs.value), dtype=pairs.value.dtype)
    core[list(members)] = 1.0
    factor = one_factor(pairs, core).clamp_min(0.0)
    weights = factor * pairs.known  # row k: the loadings that client k is held against
    if 2 < len(members) <= _LEAVE_ONE_OUT:  # of one client alone there is no factor
        chosen = torch.tensor(sorted(members))
        others = core.repeat(len(chosen), 1)
        others[torch.arange(len(chosen)), chosen] = 0.0
        each = one_factor(pairs, others, factor).clamp_min(0.0)
        weights[chosen] = each * pairs.known[chosen]
    squares = weights.square().sum(1).clamp_min(1e-300)
    raw = (pairs.value * weights).sum(1) / squares
    noise = pairs.of(torch.tensor(sorted(members))).noise
    errors, degrees = PRIOR * noise, PRIOR
    for k in unlike:
        apart = (pairs.value[k] - raw[k] * factor) * pairs.known[k] * core
        errors += float(apart.square().sum())
        degrees += max(0.0, float(pairs.known[k] @ core) - 1.0)
    rest = (pairs.value - factor[:, None] * factor) * pairs.known * core * core[:, None]
    errors += float(rest.square().sum()) / 2
    degrees += max(0.0, float((pairs.known * core * core[:, None]).sum()) / 2 - len(members))
    typical, chance = max(_middle(raw[list(members)]), 1e-9), _noise(pairs, core)
    variance = errors / degrees
    se = (chance.clamp_min(variance) / squares).sqrt() / typical
    inside = pairs.known * core * core[:, None] > 0
    units = torch.where(inside & (pairs.chance > 0), rest.square() / pairs.chance, 0.0)
    p_one = _chi_square(float(units.sum()) / 2, int(inside.sum()) // 2 - len(members))
    return Loadings(raw / typical, se, degrees, typical**2, p_one, variance**0.5 / typical**2)


def _chi_square(value: float, degrees: int) -> float:
    """Tail probability; 1 without degrees of freedom."""
    from scipy.special import chdtrc  # a fifth of a second

    return float(chdtrc(degrees, value)) if degrees > 0 else 1.0


def _noise(pairs: Pairs, core: Tensor) -> Tensor:
    """Each client's median variance by chance with the members, which no one of them moves; 0
    without any, (n,)."""
    known = torch.where(pairs.known * core > 0, pairs.chance, torch.nan)
    return torch.nan_to_num(known.nanmedian(1).values, nan=0.0)


def _middle(values: Tensor) -> float:
    """Median of the values weighted by their squares, so that those of clients that share nothing
    do not count; with no more weight for the largest two than for the third, so that one client
    that is the mean of the others is not what they are measured by."""
    ordered = values.clamp_min(1e-9).sort().values
    third = ordered[max(0, len(ordered) - 3)]
    share = ordered.clamp_max(third).square().cumsum(0)
    return float(ordered[int((share >= share[-1] / 2).nonzero()[0])])
