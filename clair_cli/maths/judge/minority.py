"""Minorities: a few clients that share something which all others lack.

In a first round from a pretrained model every client takes some generic direction, whatever its
data or labels say, so that a contaminated client may be as similar to an honest one as honest ones
are to each other. Only what is left beyond that shows it. With one common factor of the clients R
outside a set S (`factor.py`),

    value_jk = l_j l_k + e_jk,    l_s = sum_k value_sk l_k / sum_k l_k^2    for s in S,

e_st is what two members of S have in common beyond what they share with the others. The same is
computed for the clients' signatures (`signature.py`): y_jk, the product of two profiles less the
mean profile of R. S is a minority when each member has e of at least OWN_SHARE of what two typical
clients of R share, and clearly more of e, or of e and y together, than any client outside has with
S: the gap between the two, in standard deviations of the same table inside R, is a Student's t.
Together with the profiles it counts how much more concentrated the members are than R (Fisher). The
tail times the number of sets of that size bounds the probability that some set shows as much by
chance (Bonferroni): `Minority.p`. Parts of an honest cohort differ too, but without a gap: clients
with more and less of the same data lie on a line between them. One client that mixes others'
updates into its own makes no minority of them: see `_by_one`, and `ties.py`.

The set, its gap and the joint test: ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clair_cli.maths.judge.factor import PRIOR, one_factor
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.signature import Signatures, above, fisher
from clair_cli.maths.judge.thresholds import (
    ERROR_RATE,
    LEFT_P,
    MINORITY_P,
    OWN_SHARE,
)

# Fewest clients outside a minority: one factor of three leaves nothing to measure its errors by.
MIN_OUTSIDE = 4
# Weight of the profiles beside the similarities: the modules' norms go up and down together, so
# that they say half as much as their number suggests.
_PROFILES = 0.5**0.5
# Pairs from which sets are grown, of each of two orders; steps of a set until it stays; and sets
# that are cut out of each order of the clients.
_PAIRS, _STEPS, _CUTS = 40, 6, 12


@dataclass(frozen=True)
class Minority:
    """A set of clients with something of their own.

    Attributes:
        members: indices of the clients, ascending; two at least.
        p: bound on the probability that any set of that size among clients of one kind shows as
            much, 0 to 1.
    """

    members: tuple[int, ...]
    p: float


def find_minority(
    pairs: Pairs, signatures: Signatures, clients: Sequence[int], trusted: Sequence[int] = ()
) -> Minority | None:
    """The clearest minority among some clients, or None.

    Args:
        pairs, signatures: of all clients.
        clients: indices of those to compare; of copies of one another only one should be among
            them.
        trusted: clients that are in no minority; then it may be larger than what is left, and a
            weaker sign (ERROR_RATE) is enough: the majority has no claim to be right.
    """
    return clearest(
        clients,
        trusted,
        lambda chosen, outside, inside: Search(
            pairs.of(chosen), signatures.of(chosen), outside, inside
        ),
    )


def clearest(
    clients: Sequence[int],
    trusted: Sequence[int],
    search: Callable[[Tensor, int, tuple[int, ...]], Search | None],
) -> Minority | None:
    """The clearest minority that a search finds, or None.

    Args:
        clients, trusted: see `find_minority`.
        search: of the clients by index, the fewest to leave outside, and the places of the trusted.
    """
    chosen = torch.tensor(sorted(clients))
    outside = MIN_OUTSIDE if not trusted else 3
    if len(chosen) < outside + 2:
        return None
    inside = tuple(i for i, k in enumerate(chosen.tolist()) if k in trusted)
    found = search(chosen, outside, inside)
    best = Minority((), 1.0) if found is None else found.best()
    if best.p >= (ERROR_RATE if trusted else MINORITY_P):
        return None
    return Minority(tuple(int(chosen[i]) for i in best.members), best.p)


@dataclass(frozen=True)
class Search:
    """Sets of clients that may be a minority, and the gap of each.

    Attributes:
        outside: fewest clients that are left outside.
        trusted: clients that are in no set; with them a set may have more than half of the others.
    """

    pairs: Pairs
    signatures: Signatures
    outside: int
    trusted: tuple[int, ...]

    @property
    def most(self) -> int:
        """Most members of a set."""
        n = len(self.pairs.value)
        return n - self.outside if self.trusted else min(n // 2, n - self.outside)

    def best(self) -> Minority:
        """The set with the clearest gap; an empty one with p = 1 if there is none."""
        sets = [one for one in self.candidates() if not set(self.trusted) & set(one)]
        return min(self.gaps(sets), default=Minority((), 1.0), key=lambda one: (one.p, one.members))

    def candidates(self) -> list[tuple[int, ...]]:
        """Each set once: those grown from pairs, by cutting the clients' excess with the set at its
        largest gap until the set stays the same; and the first clients of some orders."""
        current = set(self._starts())
        found: set[tuple[int, ...]] = set()
        for step in range(_STEPS):  # most starts soon meet
            following = dict(zip(sorted(current), self._cut_at_gap(sorted(current)), strict=True))
            found |= {one for one, cut in following.items() if cut == one}
            current = set(following.values()) - found
            if not current:
                break
            if step == _STEPS - 1:
                found |= current
        for order in self._orders():
            values, clients = order.sort(descending=True, stable=True)
            gaps = values[1 : self.most] - values[2 : self.most + 1]  # behind the second, third, ..
            for size in (gaps.argsort(descending=True, stable=True)[:_CUTS] + 2).tolist():
                found.add(tuple(sorted(clients[:size].tolist())))
        return sorted(found)

    def _masks(self, sets: Sequence[Sequence[int]]) -> Tensor:
        """1 for the members of each set, (n_sets, n)."""
        masks = self.pairs.value.new_zeros(len(sets), len(self.pairs.value))
        rows = [row for row, members in enumerate(sets) for _ in members]
        masks[rows, [k for members in sets for k in members]] = 1.0
        return masks

    def _loadings(self, masks: Tensor) -> Tensor:
        """Of all clients on the one factor of those outside each set, (n_sets, n)."""
        shared = one_factor(self.pairs, 1.0 - masks)
        squares = (shared.square() @ self.pairs.known).clamp_min(1e-300)
        return torch.where(masks > 0, (shared @ self.pairs.value) / squares, shared)

    @cached_property
    def _everybody(self) -> Tensor:
        """Loadings of all clients on one factor, (n,)."""
        return one_factor(self.pairs, self.pairs.value.new_ones(len(self.pairs.value)))

    def _starts(self) -> list[tuple[int, ...]]:
        value, known = self.pairs.value, self.pairs.known
        rows, columns = torch.triu_indices(len(value), len(value), 1)
        loadings, starts = self._everybody, set()
        mean = value.sum(0) / known.sum(0).clamp_min(1.0)
        for table in (value - loadings[:, None] * loadings, value - mean[:, None] - mean):
            order = (table * known)[rows, columns].argsort(descending=True, stable=True)
            starts |= {(int(rows[i]), int(columns[i])) for i in order[:_PAIRS]}
        return sorted(starts)

    def _orders(self) -> list[Tensor]:
        """Values by which the members of a minority may come first, (n,) each."""
        orders = [self._everybody]
        if bool(self.signatures.told.any()):
            profile, concentration = self.signatures.profile, self.signatures.concentration
            main = torch.linalg.svd(profile, full_matrices=False).Vh[0]
            far, near = _standard(self.signatures.distances), _standard(concentration)
            both = [near + _standard(orders[0]), near + far]
            orders += [main, -main, concentration, far, *both]
        if not self.trusted:
            return orders
        away = [(order - order[list(self.trusted)].mean()).abs() for order in orders]
        return [
            *orders,
            *(-order for order in orders),
            *away,
            torch.stack([_standard(a) for a in away]).sum(0),
        ]

    def _excess(self, members: Sequence[int], loadings: Tensor) -> tuple[Tensor, Tensor]:
        """e, zero where it is not known, (n, n); and the mask of the clients outside the set."""
        outside = torch.ones(len(self.pairs.value), dtype=torch.bool)
        outside[list(members)] = False
        excess = self.pairs.value - loadings[:, None] * loadings[None, :]
        return excess * self.pairs.known, outside

    def _products(self, outside: Tensor) -> Tensor:
        """y, zero on the diagonal and for who cannot be compared, (n, n).

        Args:
            outside: mask of those outside the set who can be compared.
        """
        profile, told = self.signatures.profile, self.signatures.told.double()
        apart = (profile - profile[:, outside].mean(1, keepdim=True)) * told
        squares = apart[:, outside].square().mean(1, keepdim=True)
        apart = apart / ((squares + squares.mean()) / 2).sqrt().clamp_min(1e-12)
        products: Tensor = torch.einsum("mj,mk->jk", apart, apart) * self.pairs.known / len(apart)
        return products

    def _cut_at_gap(self, sets: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Each set, cut anew where the clients' mean excess with it falls most."""
        masks = self._masks(sets)
        loadings = self._loadings(masks)
        count = (masks @ self.pairs.known).clamp_min(1.0)
        explained = loadings * ((masks * loadings) @ self.pairs.known)
        together = (masks @ self.pairs.value - explained) / count
        ordered, order = together.sort(dim=-1, descending=True, stable=True)
        gaps = ordered[:, 1 : self.most] - ordered[:, 2 : self.most + 1]
        sizes = (gaps.argmax(-1) + 2).tolist()
        return [
            tuple(sorted(row[:size]))
            for row, size in zip(order.tolist(), sizes, strict=True)
        ]  # fmt: skip

    def _with_set(self, table: Tensor, members: Sequence[int]) -> Tensor:
        """Every client's mean value in a table with the members other than itself, (n,)."""
        count = self.pairs.known[:, list(members)].sum(1).clamp_min(1.0)
        found: Tensor = table[:, list(members)].sum(1) / count
        return found

    def gaps(self, sets: Sequence[tuple[int, ...]]) -> list[Minority]:
        """How far the members of each set stand above the other clients."""
        if not sets:
            return []
        return [
            self._gap(members, loadings)
            for members, loadings in zip(sets, self._loadings(self._masks(sets)), strict=True)
        ]  # fmt: skip

    def _gap(self, members: tuple[int, ...], loadings: Tensor) -> Minority:
        n, count = len(self.pairs.value), len(members)
        excess, outside = self._excess(members, loadings)
        if not self._is_own(excess, outside, members):
            return Minority(members, 1.0)
        p = min(1.0, self._chance(excess, outside, members) * math.comb(n, count))
        if p < MINORITY_P and self._by_one(excess, outside, members):
            p = 1.0
        return Minority(members, p)

    def _chance(self, excess: Tensor, outside: Tensor, members: Sequence[int]) -> float:
        """Tail probability of what the members share beside the clients outside."""
        p, told = self._tail(excess, outside, members, self.pairs.noise), self.signatures.told
        bank = outside & told
        if not bool(told[list(members)].all()) or int(bank.sum()) < MIN_OUTSIDE - 1:
            return p
        both = self._units(excess, outside, self.pairs.noise)
        both = both + _PROFILES * self._units(self._products(bank), bank, 0.0)
        tail = self._tail(both, outside, members, 1.0 + _PROFILES**2)
        if not tail < 1.0:
            return p
        inside = torch.zeros_like(outside)
        inside[list(members)] = True
        more = above(self.signatures.concentration, inside, bank)
        return 2 * min(p, fisher([tail, more]))

    def _by_one(self, excess: Tensor, outside: Tensor, members: Sequence[int]) -> bool:
        """Whether one client may have made the whole set, by mixing the others' updates into its
        own: where what is left without it shows nothing, or, of two, where not the signature of
        each is unlike the others'."""
        if len(members) == 2:
            return any(self._alone(k, outside) >= ERROR_RATE for k in members)
        sets = [[k for k in members if k != one] for one in members]
        return any(self._chance(excess, outside, left) >= LEFT_P for left in sets)

    def _alone(self, member: int, outside: Tensor) -> float:
        """Tail probability of a member that is by itself unlike those outside."""
        return self.signatures.alone(member, outside)

    def _is_own(self, excess: Tensor, outside: Tensor, members: Sequence[int]) -> bool:
        """Whether what the members have of their own is enough to be a minority's."""
        return self._own(excess, outside, members) >= OWN_SHARE

    def _own(self, excess: Tensor, outside: Tensor, members: Sequence[int]) -> float:
        """What the member with the least of it shares with the others beyond what all share, over
        the similarity of two typical clients outside."""
        own = float(self._with_set(excess, members)[list(members)].min())
        if not own > 0.0:
            return 0.0
        typical = self.pairs.value - excess  # l_j l_k
        inside = self.pairs.known[outside][:, outside] > 0
        level = typical[outside][:, outside][inside]
        return own / max(float(level.median()), 1e-12) if len(level) else 0.0

    def _variance(self, table: Tensor, outside: Tensor, prior: float) -> float:
        """Of a table's values inside the clients outside, with a variance known before."""
        weight = PRIOR if prior else 0.0
        degrees = self._free(outside) + weight
        return (_total(table.square(), outside) / 2 + weight * prior) / max(degrees, 1.0)

    def _free(self, outside: Tensor) -> float:
        """Known pairs of the clients outside, less a loading of each."""
        return _total(self.pairs.known, outside) / 2 - int(outside.sum())

    def _units(self, table: Tensor, outside: Tensor, prior: float) -> Tensor:
        return table / math.sqrt(max(self._variance(table, outside, prior), 1e-12))

    def _tail(self, table: Tensor, outside: Tensor, members: Sequence[int], prior: float) -> float:
        """Tail probability of the gap in a table. A member's mean is over its pairs with the
        others; pairs with a client in common are not independent, so half of them count."""
        from scipy.special import stdtr  # Student's t; a fifth of a second

        degrees = self._free(outside) + PRIOR
        together = self._with_set(table, members)
        gap = float(together[list(members)].min()) - max(0.0, float(together[outside].max()))
        variance = self._variance(table, outside, prior) * 2 / len(members)
        if gap <= 0.0 or not variance > 0.0:
            return 1.0
        return float(stdtr(degrees, -gap / variance**0.5))


def _total(table: Tensor, clients: Tensor) -> float:
    """Sum over the pairs of some clients, given as a mask."""
    chosen = clients.to(table.dtype)
    return float(chosen @ (table @ chosen))


def _standard(values: Tensor) -> Tensor:
    """Values less their median, over the median distance from it."""
    apart = values - values.median()
    return apart / apart.abs().median().clamp_min(1e-12)
