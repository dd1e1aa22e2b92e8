"""The groups of a cohort: sets of clients that have something in common, and their minorities.

A group is found by taking out, in turns, the minorities among the clients that are left (of two
that are tied, only their pair), and who has clearly less than LINE of what they have in common.
What is left of those taken out for that reason may hold a further group. The cohort is the largest
group, or that of the trusted clients. Of those that are then in no group, who are more alike than
chance allows beside what they have of the cohort's are sets apart, too small or too loose to judge
anybody by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from clair_cli.maths.judge.beside import find_beside
from clair_cli.maths.judge.factor import Loadings, loadings
from clair_cli.maths.judge.minority import Minority, find_minority
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.thresholds import ERROR_RATE, MINORITY_P, POWER
from clair_cli.maths.judge.ties import Tie, find_tie, without


@dataclass(frozen=True)
class Group:
    """Clients that have something in common.

    Attributes:
        members: indices, ascending, two or more.
        minorities: sets of further clients that have it too, and something of their own.
        loadings: of all clients on what the members have in common.
        ties: pairs that are not counted in it, those with a trusted client left out.
        has_trusted: whether a trusted client is among the members.
    """

    members: tuple[int, ...]
    minorities: tuple[Minority, ...]
    loadings: Loadings
    ties: tuple[Tie, ...] = ()
    has_trusted: bool = False

    @property
    def power(self) -> float:
        """Probability that an unrelated client would be noticed: of the median member."""
        each = self.loadings.power[list(self.members)]
        return float(each.sort().values[(len(each) - 1) // 2])

    @property
    def pair_excess(self) -> float:
        """What two more clients would need in common of their own, over what two typical members
        share, to be named a minority as likely as not by their similarities."""
        from scipy.special import stdtrit  # Student's t; a fifth of a second

        pairs = math.comb(len(self.members) + 2, 2)
        return float(stdtrit(self.loadings.degrees, 1 - MINORITY_P / pairs)) * self.loadings.spread

    @property
    def is_uneven(self) -> bool:
        """Whether one thing in common does not explain the members' similarities, and they differ
        so much beside it that two clients twice as alike would not be noticed."""
        return self.loadings.p_one < ERROR_RATE and self.pair_excess > 1.0

    @property
    def is_sure(self) -> bool:
        """Whether others can be judged by it: an unrelated client would be noticed with
        probability POWER or more; or a trusted client is in it, each member clearly shares
        something with the others, and one thing in common explains all similarities."""
        if self.power >= POWER:
            return True
        shown = self.has_trusted and all(self.loadings.is_shown(k) for k in self.members)
        return shown and self.loadings.p_one >= ERROR_RATE


def find_groups(
    pairs: Pairs,
    signatures: Signatures | None,
    clients: Sequence[int],
    trusted: Sequence[int] = (),
) -> list[Group]:
    """All groups of three or more, the cohort first, then by size.

    Args:
        pairs: of all clients.
        signatures: of all clients; None looks for no minorities.
        clients: indices of the distinct ones with an update.
        trusted: clients whose group comes first, of two or more; it needs no majority.

    Returns:
        Behind them, if the first has power (`Group.is_sure`), the sets apart, of two or more.
    """
    groups: list[Group] = []
    left = list(clients)
    while len(left) >= (2 if trusted else 3):
        group = _sure_part(pairs, _group(pairs, signatures, left, trusted))
        if group is None or (groups and not group.is_sure and not _among(trusted, group.members)):
            break
        groups.append(group)
        taken = {*group.members, *(k for m in group.minorities for k in m.members)}
        left = [k for k in left if k not in taken]
        if not group.is_sure:
            break

    def order(group: Group) -> tuple[int, bool, int]:
        return -len(_among(trusted, group.members)), not group.is_sure, -len(group.members)

    groups.sort(key=order)
    if groups and groups[0].is_sure:
        groups += [Group(m, (), loadings(pairs, m)) for m in _apart(pairs, groups[0], left)]
    return groups


def _apart(pairs: Pairs, cohort: Group, clients: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of some clients that are linked by similarities beyond what both have of the cohort's
    factor, which chance explains with ERROR_RATE for any pair of them; the largest first."""
    chosen = torch.tensor(sorted(clients), dtype=torch.long)
    n = len(chosen)
    if n < 2:
        return []
    from scipy.sparse.csgraph import connected_components  # a fifth of a second
    from scipy.special import ndtri

    of = pairs.of(chosen)
    held = cohort.loadings.ratio[chosen]
    beyond = of.value - cohort.loadings.level * held[:, None] * held
    bar = -float(ndtri(ERROR_RATE / (n * (n - 1) / 2)))
    _, labels = connected_components(((beyond > bar * of.chance.sqrt()) & (of.known > 0)).numpy())
    sets = [tuple(chosen[torch.from_numpy(labels == i)].tolist()) for i in range(max(labels) + 1)]
    return sorted((one for one in sets if len(one) > 1), key=lambda one: (-len(one), one))


def _sure_part(pairs: Pairs, group: Group | None) -> Group | None:
    """The group, or the largest of its minorities that can be judged where it can't be: all others
    share nothing then."""
    if group is None or group.is_sure:
        return group
    counted = without(pairs, group.ties)
    parts = [
        Group(m.members, (), loadings(counted, m.members, group.members), group.ties)
        for m in group.minorities
        if len(m.members) >= 3
    ]
    return max((p for p in parts if p.is_sure), key=lambda p: len(p.members), default=group)


def _group(
    pairs: Pairs, signatures: Signatures | None, clients: Sequence[int], trusted: Sequence[int]
) -> Group | None:
    """The group that most of some clients belong to; None if fewer than three are left of it (two,
    if one of them is trusted). Opposite clients are taken out first: they would turn the factor."""
    ties = list[Tie]()
    while signatures is not None and (tie := find_tie(pairs, clients, -1)) is not None:
        ties.append(tie)
        pairs = without(pairs, [tie])
    members, held = _without(pairs, sorted(clients), lambda h, k: h.is_opposite(k))
    minorities, taken = list[Minority](), list[int]()
    while True:
        while signatures is not None:
            found = _standing_out(pairs, signatures, members, trusted)
            if found is None:
                break
            odd = found.members if isinstance(found, Minority) else found
            left = [k for k in members if k not in odd]
            held = loadings(pairs, left)
            below = {k for k in left if held.is_below(k)}
            if below and len(left) - len(below) >= 2 and not _among(trusted, tuple(below)):
                # beside those who share nothing, who shares more than others seems to stand out
                members = [k for k in members if k not in below]
                taken += sorted(below)
                continue
            if not isinstance(found, Minority):
                ties.append(found)
                pairs = without(pairs, [found])
                continue
            alike = [k for k in odd if not held.is_below(k)]
            if len(alike) == 1 and held.is_above(alike[0]):
                members = sorted((*left, *alike))  # tied only to clients that share nothing
                continue
            minorities.append(found)
            members = left
        fewer, held = _without(pairs, members, lambda h, k: h.is_below(k), taken)
        if held is None or len(fewer) < (2 if _among(trusted, fewer) else 3):
            return None
        if fewer == members:
            told = tuple(tie for tie in ties if not _among(trusted, tie))  # these are no framers
            anchored = bool(_among(trusted, members))
            return Group(tuple(members), tuple(minorities), held, told, anchored)
        members = fewer


def _standing_out(
    pairs: Pairs, signatures: Signatures, members: Sequence[int], trusted: Sequence[int]
) -> Minority | Tie | None:
    """The clearest minority among some clients, or else tie, or None."""
    known = _among(trusted, members)
    found = find_minority(pairs, signatures, members, known)
    found = found or find_beside(signatures, members, known)
    return found or find_tie(pairs, members, 1) or find_tie(pairs, members, -1)


def _without(
    pairs: Pairs,
    members: Sequence[int],
    unfit: Callable[[Loadings, int], bool],
    taken: Sequence[int] = (),
) -> tuple[list[int], Loadings | None]:
    """The members without those that are unfit by their loadings on what is left, the lowest taken
    out first; and the loadings, with the errors of those that were `taken` out before."""
    left, unlike = list(members), list(taken)
    held = None
    while len(left) >= 2:
        held = loadings(pairs, left, unlike)
        lowest = max(left, key=lambda k: float(held.depth[k]))
        if not unfit(held, lowest):
            break
        left.remove(lowest)
        unlike.append(lowest)
    return left, held


def _among(trusted: Sequence[int], clients: Sequence[int]) -> tuple[int, ...]:
    return tuple(k for k in trusted if k in clients)
