"""The votes and the coherent groups of a cohort: which clients count as one, and who belongs with
whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import PairLevels, over_modules
from clair_cli.maths.evidence.similarity import STACKINGS
from clair_cli.maths.judge.client_scores import norm_ratio
from clair_cli.maths.judge.groups import alignment, coherent
from clair_cli.maths.judge.loadings import inner_group, near_copies, trimmed
from clair_cli.maths.judge.sharing import SharingTest, choose_stacking, find_sharing
from clair_cli.maths.judge.thresholds import (
    AT_HOME,
    DUPLICATE_COSINE,
    FAR_TIGHTER,
    GROUP_RATIO,
    LONER_RATIO,
    MIN_LEVEL,
    NORM_CAP,
    PAIR_LEVEL,
    SEPARATION,
    VICTIM,
)


@dataclass(frozen=True)
class Structure:
    """Groups that the pairwise similarities suggest.

    Attributes:
        duplicates: client -> the first client (in the given order) it equals up to scale.
        empty: clients whose delta weights are all zero.
        copies: client -> the first of the clients it is nearly the same as; one vote for all.
        distinct: the other clients, one vote each.
        sharings: one test per stacking.
        stacking: in which sharing was found, or None.
        group: the largest coherent group in that stacking.
        others: further coherent groups of two or more, largest first.
    """

    duplicates: dict[int, int]
    empty: tuple[int, ...]
    copies: dict[int, int]
    distinct: tuple[int, ...]
    sharings: tuple[SharingTest, ...] = ()
    stacking: str | None = None
    group: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()

    @property
    def singletons(self) -> tuple[int, ...]:
        """Distinct clients in no group."""
        grouped = {k for g in (self.group, *self.others) for k in g}
        return tuple(k for k in self.distinct if k not in grouped)


def joint_cosine(evidence: Evidence) -> Tensor:
    """Cosine of the clients' delta weights of all modules as one long vector each.

    Returns:
        Shape (n_clients, n_clients), -1 to 1 up to rounding; 0 for a client whose delta weights are
        all zero.
    """
    share = _unit_columns(evidence.norms)
    cosines = torch.nan_to_num(evidence.matrix.value, nan=0.0)
    return (cosines * share[:, :, None] * share[:, None, :]).sum(0)


def _unit_columns(norms: Tensor) -> Tensor:
    """Norms (n_modules, n_clients) over each client's norm of all modules, without overflow."""
    largest = norms.amax(0)
    scaled = norms / torch.where(largest > 0, largest, 1.0)
    total = torch.linalg.vector_norm(scaled, dim=0)
    return scaled / torch.where(total > 0, total, 1.0)


def find_duplicates(
    evidence: Evidence, clients: Sequence[int], trusted: Sequence[int] = ()
) -> dict[int, int]:
    """Clients with the same delta weights up to a positive factor, in whatever gauge.

    Args:
        clients: in order of content. The first of each group of equals keeps its vote, but those
            of ordinary size come before all others: a copy scaled up must not speak for its
            original.
        trusted: clients who come before all of these.

    Returns:
        Client -> the first of its group of equals; the first client itself is no key.
    """
    cosine = joint_cosine(evidence)
    if not clients:
        return {}
    ratio = norm_ratio(evidence, clients)
    ordinary = {k for k in clients if 1.0 / NORM_CAP <= float(ratio[k]) <= NORM_CAP}
    first: dict[int, int] = {}
    kept: list[int] = []
    for k in sorted(clients, key=lambda k: (k not in trusted, k not in ordinary)):  # stable
        same = [j for j in kept if float(cosine[j, k]) >= DUPLICATE_COSINE]
        if same:
            first[k] = same[0]
        else:
            kept.append(k)
    return first


def find_structure(evidence: Evidence, trusted: Sequence[int] = ()) -> Structure:
    """Find duplicates, empty clients, and coherent groups in the stacking that shows sharing.

    Clients that are nearly the same count as one at first, because a few who act together would
    otherwise make a group so tight that nobody else belongs to any. If the group found this way is
    no larger than the largest set of near copies, the near copies may be the clients that share,
    and all clients count one by one.

    Args:
        trusted: clients whose group is the cohort, whatever its size.

    Returns:
        With `stacking` None and without groups if no stacking shows sharing beyond chance.
    """
    alive = evidence.norms.amax(0) > 0
    empty = tuple(k for k in range(len(alive)) if not bool(alive[k]))
    present = [k for k in range(len(alive)) if bool(alive[k])]
    duplicates = find_duplicates(evidence, present, trusted)
    distinct = tuple(k for k in present if k not in duplicates)
    copies = _trusted_first(near_copies(evidence.levels("matrix"), distinct), trusted)
    if copies:
        single = tuple(k for k in distinct if k not in copies)
        found = _arrange(evidence, Structure(duplicates, empty, copies, single), trusted)
        largest = 1 + max(Counter(copies.values()).values())
        if found.stacking is not None and len(found.group) > largest:
            return found
    return _arrange(evidence, Structure(duplicates, empty, {}, distinct), trusted)


def _arrange(evidence: Evidence, start: Structure, trusted: Sequence[int]) -> Structure:
    """Fill in groups and stacking for the distinct clients of `start`."""
    sharings = tuple(find_sharing(evidence, s, start.distinct) for s in STACKINGS)
    chosen = choose_stacking(sharings)
    if chosen is None:
        return replace(start, sharings=sharings)
    levels = evidence.levels(chosen.stacking)
    first = _of_the_trusted(chosen.groups, trusted) or _main(levels, chosen.groups)
    rest = [g for g in chosen.groups if g is not first]
    others = tuple(g for g in rest if _is_group(levels, g, first))
    apart = {k for g in others for k in g}
    free = [k for k in start.distinct if k not in apart]
    group = trimmed(levels, settle(levels, first, free))
    inner = inner_group(levels, group)
    if inner:
        group = trimmed(levels, [k for k in group if k not in inner])
        others = (*others, inner)
    for same in _copied(start.copies):
        main = [k for k in group if k not in same]
        if any(same[0] in g for g in others):
            continue  # they go with their first
        if len(main) > 2 and _elsewhere(levels, same, main):
            group, others = tuple(main), (*others, same)
    others = tuple(_without_guests(levels, g, group, start.copies) for g in others)
    others = tuple(sorted((g for g in others if len(g) > 1), key=lambda g: (-len(g), g)))
    return replace(start, sharings=sharings, stacking=chosen.stacking, group=group, others=others)


def _trusted_first(copies: dict[int, int], trusted: Sequence[int]) -> dict[int, int]:
    """The same sets of near copies, with a trusted client as the first of each."""
    found: dict[int, int] = {}
    for same in _copied(copies):
        first = next((k for k in same if k in trusted), same[0])
        found |= {k: first for k in same if k != first}
    return found


def _of_the_trusted(
    groups: Sequence[tuple[int, ...]], trusted: Sequence[int]
) -> tuple[int, ...] | None:
    """The group of two or more with most trusted clients (of equal ones the largest), if any."""
    having = [g for g in groups if len(g) > 1 and set(g) & set(trusted)]
    return max(having, key=lambda g: (len(set(g) & set(trusted)), len(g)), default=None)


def _copied(copies: dict[int, int]) -> list[tuple[int, ...]]:
    """Sets of clients that are nearly the same, the first one of each set in front."""
    firsts = sorted(set(copies.values()))
    return [(first, *sorted(k for k, j in copies.items() if j == first)) for first in firsts]


def _elsewhere(levels: PairLevels, same: Sequence[int], main: Sequence[int]) -> bool:
    """Whether clients that are nearly the same, three or more, are a group apart from `main`. If
    they are about as alike to the main group as its members are, they may be one honest client and
    others who copied it."""
    if len(same) < 3 or coherent(levels, main, same):
        return False
    between = over_modules(levels.between(same, main)).mean
    return between < GROUP_RATIO * levels.level(main).mean


def _main(levels: PairLevels, groups: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The largest group, unless it shares next to nothing and a smaller one shares a lot: all
    training has something in common, that of unrelated clients too."""
    others = [g for g in groups[1:] if next_to_nothing(levels, groups[0], g)]
    return others[0] if others else groups[0]


def far_tighter(levels: PairLevels, group: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a group of three or more is FAR_TIGHTER times as coherent as another."""
    if len(group) < 3 or len(other) < 2:
        return False
    return levels.level(group).mean >= FAR_TIGHTER * levels.level(other).mean


def next_to_nothing(levels: PairLevels, group: Sequence[int], beside: Sequence[int]) -> bool:
    """Whether a group shares less than a cohort must to be judged, and far less than another."""
    return far_tighter(levels, beside, group) and levels.level(group).mean < MIN_LEVEL


def _is_group(levels: PairLevels, group: Sequence[int], main: Sequence[int]) -> bool:
    """Whether a further coherent group has three clients, or two that are not alike by chance."""
    if len(group) == 2 and len(main) > 1:
        return levels.level(group).mean >= PAIR_LEVEL * levels.level(main).mean
    return len(group) > 2


def _without_guests(
    levels: PairLevels, group: Sequence[int], main: Sequence[int], copies: dict[int, int]
) -> tuple[int, ...]:
    """The members of another group without those that are well aligned with the main group too: an
    attacker who copies an honest client must not pull it out of the main group. Of clients that are
    nearly the same, each may be the honest one, so a lower alignment is enough."""
    if far_tighter(levels, group, main):  # everybody is at home where next to nothing is shared
        return tuple(group)
    bar = VICTIM if any(copies.get(k) in group for k in group) else AT_HOME
    return tuple(k for k in group if not alignment(levels, k, main).ratio >= bar)


def _belongs(levels: PairLevels, client: int, group: Sequence[int]) -> bool:
    """Whether a client is aligned with a group, or alike to it as the members are to each other."""
    found = alignment(levels, client, group)
    if (found.high if levels.few else found.ratio) >= LONER_RATIO:
        return True
    separation = levels.separation([k for k in group if k != client], [client])
    return found.ratio > 0 and not separation >= SEPARATION


def settle(
    levels: PairLevels, group: Sequence[int], clients: Sequence[int], max_iter: int = 10
) -> tuple[int, ...]:
    """Let every client join or leave a group by its own alignment with it, until it settles.

    Args:
        group: the members to begin with.
        clients: who may be a member: all distinct clients outside other coherent groups.
        max_iter: rounds after which the group is taken as it is.

    Returns:
        Sorted members; the group as given if fewer than three would be left.
    """
    current = tuple(sorted(group))
    for _ in range(max_iter):
        following = tuple(k for k in clients if _belongs(levels, k, current))
        if following == current or len(following) < 3:
            break
        current = following
    return current
