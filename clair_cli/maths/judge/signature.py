"""What a client's delta weights look like by themselves: their sizes over the modules, and how many
directions they use.

Clients with wrong labels or a backdoor follow the direction that all training takes further than
others do, in other modules, and in fewer directions, and share less of all else with them. The
cohort is the bank of what is ordinary.

    profile         log norm in each module less the client's mean: learning rate, number of steps
                    and scaling drop out
    concentration   less the mean over modules of the log effective rank
    beside          what it shares with the others beside the direction that all training takes
                    (`evidence/beside.py`): both the mean over them and that without the least
                    quarter and the largest, as a few of them can move the one, and where honest
                    clients differ much the other shows too little of it

The first two are taken beside the clients' median in each module; where clients have different
numbers of rank-one components, beside the median of those of the same number, if there are enough
of them: more components use more directions.

Source of the idea: "Weight space detection of backdoors in LoRA adapters", arXiv 2602.15195.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence

# Fewest modules of a profile.
MIN_MODULES = 4
# Least deviation of concentrations, and of the log of a profile's distance, that one kind of
# clients is thought to have; with the weight of this many clients.
_LEAST, _PRIOR = 0.05, 4.0
# What a loading alone may add: honest clients with other data have other loadings.
_LOADING_P = 0.01
# Fewest clients that another is held against when a set is asked whether one client made it.
_FEWEST = 3
# Fewest clients whose signatures say what is ordinary for one of them, or for their rank.
_BANK = 6
# Loadings below this are as unlike as can be.
_LEAST_LOADING = 0.05
# Up to this many clients each is held against a median that it had no part in, and against what
# the others share without who is left out.
_LEAVE_ONE_OUT = 64


def fisher(probabilities: Sequence[float]) -> float:
    """One tail probability of independent ones.

    Source: R. A. Fisher, Statistical Methods for Research Workers, 1932, section 21.1.

    >>> round(fisher([0.05, 0.05]), 4)
    0.0175
    """
    from scipy.special import chdtrc  # a fifth of a second

    logs = sum(math.log(max(p, 1e-300)) for p in probabilities)
    return float(chdtrc(2 * len(probabilities), -2.0 * logs))


def stouffer(probabilities: Sequence[float]) -> float:
    """One tail probability of independent ones, of which one that is large counts against another
    that is small.

    Source: S. A. Stouffer et al., The American Soldier, volume 1, 1949, page 45.

    >>> round(stouffer([0.05, 0.05]), 4), round(stouffer([0.05, 0.95]), 4)
    (0.01, 0.5)
    """
    from scipy.special import ndtr, ndtri  # a fifth of a second

    each = [float(ndtri(min(max(p, 1e-300), 1.0 - 1e-15))) for p in probabilities]
    return float(ndtr(sum(each) / math.sqrt(len(each))))


def above(values: Tensor, group: Tensor, others: Tensor, least: float = 0.0) -> float:
    """Tail probability of a group's mean value above the others' (Student's t).

    Args:
        values: one per client, (n,).
        group, others: masks, (n,).
        least: deviation of the others that is taken for granted, with the weight of some clients.
    """
    from scipy.special import stdtr

    mine, rest = values[group], values[others]
    prior = _PRIOR if least else 0.0
    degrees = len(rest) - 1 + prior
    spread = float((rest - rest.mean()).square().sum()) + prior * least**2
    scale = (spread / degrees * (1 / len(mine) + 1 / len(rest))) ** 0.5
    if not scale > 0.0:
        return 1.0
    return float(stdtr(degrees, -(float(mine.mean()) - float(rest.mean())) / scale))


@dataclass(frozen=True)
class Signatures:
    """Signatures of n clients.

    Attributes:
        profile: see the top of this file; the clients' median profile is taken off; 0 where a
            delta weight is zero, (n_modules, n).
        concentration: (n,); NaN for a client without an update.
        alike: for each client those of its own number of rank-one components, (n, n).
        beside: what pairs share beside the common direction, in deviations by chance; NaN where it
            is not known, as on the diagonal, (n, n). None where it is of nobody.
        noise: variance of a value of `beside` by chance.
    """

    profile: Tensor
    concentration: Tensor
    alike: Tensor
    beside: Tensor | None = None
    noise: float = 0.0
    _kept: dict[float, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def of(self, clients: Tensor) -> Signatures:
        """The signatures of some clients, by index, in the order given; beside those of their own
        rank among them, if not all are of one rank."""
        profile, alike = self.profile[:, clients], self.alike[clients][:, clients]
        concentration = self.concentration[clients]
        if not bool(alike.all()):
            own = [(profile[:, of_rank], concentration[of_rank]) for of_rank in alike]
            profile = profile - torch.stack([p.median(1).values for p, _ in own], dim=1)
            concentration = concentration - torch.stack([c.nanmedian() for _, c in own])
        beside = None if self.beside is None else self.beside[clients][:, clients]
        return Signatures(profile, concentration, alike, beside, self.noise)

    @cached_property
    def told(self) -> Tensor:
        """Mask of the clients that can be compared: all, if they are of one rank, else those of a
        rank that _BANK of them have; and nobody without modules enough, (n,)."""
        enough = self.alike.all() | (self.alike.sum(1) >= _BANK)
        return enough & (len(self.profile) >= MIN_MODULES)

    @cached_property
    def distances(self) -> Tensor:
        """Log of each client's distance to the median profile of the others that can be compared
        (of all of these, where they are many), (n,)."""
        n = self.profile.shape[1]
        told = self.told if int(self.told.sum()) > 1 else torch.ones_like(self.told)
        others = ~torch.eye(n, dtype=torch.bool) & told
        middle = self.profile[:, told].median(1, keepdim=True).values
        if n <= _LEAVE_ONE_OUT:
            each = [self.profile[:, others[k]].median(1).values for k in range(n)]
            middle = torch.stack(each, dim=1)
        return (self.profile - middle).square().mean(0).clamp_min(1e-18).sqrt().log()

    def odd(self, client: int, loading: Tensor) -> float:
        """Tail probability of a client that is at once less like the others' profile, more
        concentrated, and of another loading than the others or sharing less beside the common
        direction: 1 where it cannot be told.

        Args:
            loading: of every client, (n,).
        """
        group = torch.arange(len(self.told)) == client
        others = self.told & ~group
        if not bool(self.told[client]) or int(others.sum()) < _BANK - 1:
            return 1.0
        logs = loading.clamp_min(_LEAST_LOADING).log()
        further = above(logs, group, others, 2 * _LEAST)
        shares = [max(_LOADING_P, 2 * min(further, 1.0 - further))]
        shares += self.lacks_beside(client, others)
        # an honest client with data of its own shares less as well, in more directions
        return stouffer([
            above(self.distances, group, others, 4 * _LEAST),
            above(self.concentration, group, others, _LEAST),
            # two looks at what it shares; what is as usual is no sign against the others
            min(0.5, 1.0 - (1.0 - min(shares)) ** len(shares)),
        ])  # fmt: skip

    def alone(self, client: int, others: Tensor) -> float:
        """Tail probability of a client that is at once more concentrated and less like the median
        profile than some others of its own rank, and shares less beside the common direction; 1
        where it cannot be told.

        Args:
            others: mask of those, (n,).
        """
        group = torch.arange(len(self.concentration)) == client
        own = others & ~group & self.alike[client]
        if len(self.profile) < MIN_MODULES or int(own.sum()) < _FEWEST:
            return 1.0
        each = [
            above(self.distances, group, own, 4 * _LEAST),
            above(self.concentration, group, own, _LEAST),
        ]
        more = fisher([*each, *self.lacks_beside(client, others)])
        # with or without: where nobody shares anything beside, that tells nothing
        return min(1.0, 2.0 * min(fisher(each), more))

    def lacks_beside(self, client: int, others: Tensor) -> tuple[float, ...]:
        """Tail probability of a client that shares as little with some others beside the common
        direction; () where it cannot be told. Of many clients, what each shares with all counts.
        From 0.5 on, no sign, it may be more.

        Args:
            others: mask of those, (n,).
        """
        if self.beside is None:
            return ()
        group = torch.arange(len(self.beside)) == client
        few = len(group) <= _LEAVE_ONE_OUT
        compared, others = (others | group) if few else self.told, others & ~group
        chances = []
        for drop in (0.0, 0.25):
            shared, count = self._shared_beside(compared, drop)
            known = others & torch.isfinite(shared)
            if not bool(torch.isfinite(shared[client])) or int(known.sum()) < _FEWEST:
                return ()
            least = (self.noise / int(count[client])) ** 0.5
            chances.append(above(-shared, group, known, least))
            if chances[-1] >= 0.5:  # no sign; the other is no smaller
                break
        return (max(chances),)

    def _shared_beside(self, compared: Tensor, drop: float) -> tuple[Tensor, Tensor]:
        """What each client shares with some others beside the common direction, see `_trimmed`.
        Kept for all who can be compared: every client asks for it.

        Args:
            compared: mask of those others, (n,).
        """
        assert self.beside is not None
        if not torch.equal(compared, self.told):
            return _trimmed(torch.where(compared, self.beside, torch.nan), drop)
        if drop not in self._kept:
            self._kept[drop] = _trimmed(torch.where(compared, self.beside, torch.nan), drop)
        return self._kept[drop]


def signatures_of(evidence: Evidence, ranks: Sequence[int] | None = None) -> Signatures:
    """The signatures of all clients.

    Args:
        ranks: numbers of rank-one components of the clients; None if they are the same.
    """
    norms = torch.where(evidence.norms > 0, evidence.norms, torch.nan).log()
    profile = _beside_median(norms)
    profile = torch.nan_to_num(_beside_median(profile - profile.nanmean(0)))
    rank = torch.tensor(list(ranks) if ranks else [0] * norms.shape[1])
    beside, noise = None, 0.0
    if (sums := evidence.beside) is not None:
        count = torch.where(sums.count > 0, sums.count, torch.nan)
        beside, noise = sums.value / count, float((sums.variance / count.square()).nanmedian())
    return Signatures(
        profile, -_beside_median(evidence.effective_ranks.log()).nanmean(0),
        rank[:, None] == rank[None, :], beside, 0.0 if math.isnan(noise) else noise,
    )  # fmt: skip


def _trimmed(table: Tensor, drop: float) -> tuple[Tensor, Tensor]:
    """Mean of each row's known values without the least and the largest, NaN of fewer than _FEWEST;
    and of how many that is, (n,) each.

    Args:
        drop: share of the values that are left out on either side, at least one if not 0.
    """
    ordered = torch.where(torch.isfinite(table), table, torch.inf).sort(1).values
    count = torch.isfinite(table).sum(1)
    least = (count * drop).floor().clamp_min(1.0 if drop else 0.0)
    place = torch.arange(table.shape[1])
    kept = (place >= least[:, None]) & (place < (count - least)[:, None])
    total, used = torch.where(kept, ordered, 0.0).sum(1), kept.sum(1).clamp_min(1)
    return torch.where(count >= _FEWEST, total / used, torch.nan), used


def _beside_median(values: Tensor) -> Tensor:
    """Values less their median in each module, so that a client has no other mean for a module that
    it has more or less than the others, (n_modules, n_clients)."""
    return values - values.nanmedian(1, keepdim=True).values
