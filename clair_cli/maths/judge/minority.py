"""Minorities: a few clients that share something which all others lack.

In a first round from a pretrained model every client takes some generic direction, whatever its
data or labels say, so that a contaminated client may be as similar to an honest one as honest ones
are to each other. Only similarity beyond that shows it. With the mean cosine z_jk of two clients in
units of chance, and one common factor of the clients R outside a set S,

    z_jk = l_j l_k + e_jk    for j, k in R;      l_s = sum_k z_sk l_k / sum_k l_k^2    for s in S,

e_st = z_st - l_s l_t is what two members of S have in common beyond what they share with the
others. S is a minority when each member has clearly more of that with the other members than any
client outside has with S: the gap between the two, in standard deviations of e inside R, is a
Student's t. Its tail times the number of sets of that size bounds the probability that some set has
such a gap by chance (Bonferroni): `Minority.p`. Parts of an honest cohort differ too, but without a
gap: clients with more and less of the same data lie on a line between them.

Sources: one common factor: C. Spearman, "General intelligence, objectively determined and
measured", American Journal of Psychology 15, 1904. The set and its gap: ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.judge.thresholds import MINORITY_P

# Fewest clients outside a minority: one factor of three leaves nothing to measure its errors by.
MIN_OUTSIDE = 4
# Degrees of freedom that the variance by chance counts for beside the one that is seen.
_PRIOR = 4.0
# Pairs from which sets are grown, of each of two orders; and steps of a set until it stays.
_PAIRS, _STEPS = 40, 6
# Most steps of the factor's iteration, and the change of a loading (they are about one) at its end.
_FACTOR_STEPS, _FACTOR_ERROR = 100, 1e-6


@dataclass(frozen=True)
class Minority:
    """A set of clients with something of their own.

    Attributes:
        members: indices of the clients, ascending; two at least, at most half of those compared.
        p: bound on the probability that any set of that size among clients of one kind shows such a
            gap, 0 to 1.
    """

    members: tuple[int, ...]
    p: float


def find_minorities(evidence: Evidence, clients: Sequence[int]) -> tuple[Minority, ...]:
    """All minorities among some clients, the clearest first.

    Args:
        clients: indices of those to compare; copies of one another count as a minority, so only
            one of them should be among them. Who has less than half of the modules is passed over.
    """
    present = torch.isfinite(evidence.effective_ranks)
    most = present.any(1).sum()
    found: list[Minority] = []
    left = [k for k in sorted(clients) if 2 * int(present[:, k].sum()) >= int(most) > 0]
    while len(left) >= MIN_OUTSIDE + 2:
        pairs = _in_units_of_chance(evidence, left)
        best = min(
            (_gap(pairs, members) for members in _candidates(pairs)),
            default=Minority((), 1.0),
            key=lambda one: (one.p, one.members),
        )
        if best.p >= MINORITY_P:
            break
        found.append(Minority(tuple(left[i] for i in best.members), best.p))
        left = [k for k in left if k not in found[-1].members]
    return tuple(found)


@dataclass(frozen=True)
class _Pairs:
    """Similarities of n clients.

    Attributes:
        value: in units of the cohort's mean, zero on the diagonal and where a pair has less than a
            quarter of the modules in common, (n, n).
        known: 1 where it has more, 0 elsewhere and on the diagonal, (n, n).
        chance: variance of a value by chance.
    """

    value: Tensor
    known: Tensor
    chance: float

    def of(self, clients: Tensor) -> _Pairs:
        """The pairs of some clients."""
        value, known = (t[clients][:, clients] for t in (self.value, self.known))
        return _Pairs(value, known, self.chance)


def _in_units_of_chance(evidence: Evidence, clients: Sequence[int]) -> _Pairs:
    """Cosines of the pairs, each in units of its module's median deviation by chance, summed over
    the modules that both clients have and divided by the same sum of the cohort's mean pair.

    For unrelated delta weights that use the same output and input directions, in whatever
    combination, a cosine has the variance <D D', E E'> <D' D, E' E> of unit D and E.
    """
    chosen = torch.tensor(list(clients))

    def of_pairs(table: Tensor) -> Tensor:
        return table.index_select(1, chosen).index_select(2, chosen)

    ranks = evidence.effective_ranks.index_select(1, chosen)
    variance = of_pairs(evidence.output.value) * of_pairs(evidence.input.value)
    variance = variance / (ranks[:, :, None] * ranks[:, None, :])
    others = ~torch.eye(len(clients), dtype=torch.bool)
    unit = variance[:, others].nanmedian(1).values.sqrt()
    used = torch.isfinite(unit) & (unit > 0)
    cosines = of_pairs(evidence.matrix.value)[used] / unit[used, None, None]
    variance = variance[used] / unit[used, None, None].square()
    both = torch.isfinite(cosines) & torch.isfinite(variance)
    levels = cosines[:, others].nanmean(1)
    total = torch.where(both, levels[:, None, None], 0.0).sum(0)
    known = others & (4 * both.sum(0) >= len(cosines)) & (total > 0)
    summed = torch.where(both, cosines, 0.0).sum(0)
    value = torch.where(known, summed / torch.where(known, total, 1.0), 0.0)
    noise = torch.where(both, variance, 0.0).sum(0)[known] / total[known].square()
    return _Pairs(value, known.to(value.dtype), float(noise.median()) if len(noise) else 0.0)


def _factor(pairs: _Pairs) -> Tensor:
    """Loadings l of one common factor, value = l l' where it is known, (n,)."""
    sums = pairs.value.sum(1)
    loadings: Tensor = sums / sums.sum().clamp_min(1e-12).sqrt()  # the centroid method
    for _ in range(_FACTOR_STEPS):
        fitted = (pairs.value @ loadings) / (pairs.known @ loadings.square()).clamp_min(1e-12)
        moved, loadings = (fitted - loadings).abs().max(), (loadings + fitted) / 2
        if not float(moved) > _FACTOR_ERROR:
            break
    return loadings


def _excess(pairs: _Pairs, members: Sequence[int]) -> tuple[Tensor, Tensor]:
    """e, zero where it is not known, (n, n); and the clients outside the set."""
    inside = torch.zeros(len(pairs.value), dtype=torch.bool)
    inside[list(members)] = True
    outside = (~inside).nonzero().flatten()
    shared = _factor(pairs.of(outside))
    squares = pairs.known[:, outside] @ shared.square()
    loadings = (pairs.value[:, outside] @ shared) / squares.clamp_min(1e-12)
    loadings[outside] = shared
    return (pairs.value - loadings[:, None] * loadings[None, :]) * pairs.known, outside


def _with_set(excess: Tensor, known: Tensor, members: Sequence[int]) -> Tensor:
    """Every client's mean excess with the members of a set other than itself, (n,)."""
    chosen = list(members)
    found: Tensor = excess[:, chosen].sum(1) / known[:, chosen].sum(1).clamp_min(1.0)
    return found


def _candidates(pairs: _Pairs) -> Iterator[tuple[int, ...]]:
    """Sets that may be a minority, each once: grown from pairs, by cutting the clients' excess with
    the set at its largest gap until the set stays the same."""
    n = len(pairs.value)
    rows, columns = torch.triu_indices(n, n, 1)
    loadings = _factor(pairs)
    mean = pairs.value.sum(0) / pairs.known.sum(0).clamp_min(1.0)
    orders = (pairs.value - loadings[:, None] * loadings, pairs.value - mean[:, None] - mean)
    starts = set()
    for table in orders:
        order = (table * pairs.known)[rows, columns].argsort(descending=True, stable=True)
        starts |= {(int(rows[i]), int(columns[i])) for i in order[:_PAIRS]}
    seen: set[tuple[int, ...]] = set()
    cut: dict[tuple[int, ...], tuple[int, ...]] = {}  # most starts soon meet
    for pair in sorted(starts):
        members: tuple[int, ...] = pair
        for _ in range(_STEPS):
            if members not in cut:
                cut[members] = _cut_at_gap(pairs, members)
            if cut[members] == members:
                break
            members = cut[members]
        if members not in seen:
            seen.add(members)
            yield members


def _cut_at_gap(pairs: _Pairs, members: Sequence[int]) -> tuple[int, ...]:
    excess, _ = _excess(pairs, members)
    ordered, order = _with_set(excess, pairs.known, members).sort(descending=True, stable=True)
    n = len(excess)
    most = max(2, min(n // 2, n - MIN_OUTSIDE))
    gaps = ordered[1:most] - ordered[2 : most + 1]  # behind the second client, the third, ...
    size = 2 + int(gaps.argmax())
    return tuple(sorted(order[:size].tolist()))


def _gap(pairs: _Pairs, members: tuple[int, ...]) -> Minority:
    """How far the members stand above the other clients."""
    from scipy.special import stdtr  # Student's t; a fifth of a second

    excess, outside = _excess(pairs, members)
    together = _with_set(excess, pairs.known, members)
    rest, known = excess[outside][:, outside], pairs.known[outside][:, outside]
    degrees = float(known.sum()) / 2 - len(outside) + _PRIOR
    if degrees < 1.0:
        return Minority(members, 1.0)
    variance = (float(rest.square().sum()) / 2 + _PRIOR * pairs.chance) / degrees
    gap = float(together[list(members)].min()) - max(0.0, float(together[outside].max()))
    if not variance > 0.0:
        return Minority(members, 1.0)
    tail, sets = float(stdtr(degrees, -gap / variance**0.5)), comb(len(together), len(members))
    return Minority(members, min(1.0, tail * sets))
