"""Which clients are one vote, and which coherent groups there are."""

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
        empty: clients without any update.
        copies: client -> the first of the clients it is nearly the same as; one vote for all.
        distinct: the clients left, one vote each.
        sharings: one per stacking.
        stacking: where sharing was found, or None.
        group: the largest coherent group there.
        others: further groups of two or more, largest first.
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
        grouped = {k for g in (self.group, *self.others) for k in g}
        return tuple(k for k in self.distinct if k not in grouped)


def joint_cosine(evidence: Evidence) -> Tensor:
    """Cosine of the clients' whole updates, all modules together and by their own sizes.

    Returns:
        Shape (n_clients, n_clients), -1 to 1 up to rounding; 0 for a client without an update.
    """
    share = _unit_columns(evidence.norms)
    cosines = torch.nan_to_num(evidence.matrix.value, nan=0.0)
    return (cosines * share[:, :, None] * share[:, None, :]).sum(0)


def _unit_columns(norms: Tensor) -> Tensor:
    """Norms (n_modules, n_clients) over each client's whole norm, without overflow."""
    largest = norms.amax(0)
    scaled = norms / torch.where(largest > 0, largest, 1.0)
    total = torch.linalg.vector_norm(scaled, dim=0)
    return scaled / torch.where(total > 0, total, 1.0)


def find_duplicates(evidence: Evidence, clients: Sequence[int]) -> dict[int, int]:
    """Clients that are the same update up to a positive factor, in whatever gauge.

    Args:
        clients: in order of content: the first of each group of equals keeps its vote, but one
            of ordinary size before all others (a copy scaled up must not speak for its original).

    Returns:
        Client -> the first of its group; the first ones themselves are no keys.
    """
    cosine = joint_cosine(evidence)
    if not clients:
        return {}
    ratio = norm_ratio(evidence, clients)
    ordinary = {k for k in clients if 1.0 / NORM_CAP <= float(ratio[k]) <= NORM_CAP}
    first: dict[int, int] = {}
    kept: list[int] = []
    for k in sorted(clients, key=lambda k: k not in ordinary):  # stable: else in order
        same = [j for j in kept if float(cosine[j, k]) >= DUPLICATE_COSINE]
        if same:
            first[k] = same[0]
        else:
            kept.append(k)
    return first


def find_structure(evidence: Evidence) -> Structure:
    """Duplicates, empty updates, and coherent groups, in the stacking that shows sharing.

    Clients that are nearly the same count as one first: a few who act together would else make
    a group so tight that nobody else belongs anywhere. Where they are as many as everybody who
    is found to share something without them, they are those who share, and count one by one.

    Returns:
        `stacking` None and no groups where no stacking shows sharing beyond chance.
    """
    alive = evidence.norms.amax(0) > 0
    empty = tuple(k for k in range(len(alive)) if not bool(alive[k]))
    present = [k for k in range(len(alive)) if bool(alive[k])]
    duplicates = find_duplicates(evidence, present)
    distinct = tuple(k for k in present if k not in duplicates)
    copies = near_copies(evidence.levels("matrix"), distinct)
    if copies:
        single = tuple(k for k in distinct if k not in copies)
        found = _arrange(evidence, Structure(duplicates, empty, copies, single))
        largest = 1 + max(Counter(copies.values()).values())
        if found.stacking is not None and len(found.group) > largest:
            return found
    return _arrange(evidence, Structure(duplicates, empty, {}, distinct))


def _arrange(evidence: Evidence, start: Structure) -> Structure:
    """Fill in groups and stacking for the distinct clients of `start`."""
    sharings = tuple(find_sharing(evidence, s, start.distinct) for s in STACKINGS)
    chosen = choose_stacking(sharings)
    if chosen is None:
        return replace(start, sharings=sharings)
    levels = evidence.levels(chosen.stacking)
    first = _main(levels, chosen.groups)
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


def _copied(copies: dict[int, int]) -> list[tuple[int, ...]]:
    """Clients that are nearly the same, together."""
    firsts = sorted(set(copies.values()))
    return [(first, *sorted(k for k, j in copies.items() if j == first)) for first in firsts]


def _elsewhere(levels: PairLevels, same: Sequence[int], main: Sequence[int]) -> bool:
    """Whether clients that are nearly the same are a group apart. Those about as alike to the
    main group as its members are may be one honest client and who made copies of it."""
    if len(same) < 3 or coherent(levels, main, same):
        return False
    between = over_modules(levels.between(same, main)).mean
    return between < GROUP_RATIO * levels.level(main).mean


def _main(levels: PairLevels, groups: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The largest group, unless it shares next to nothing and a smaller one a lot: unrelated
    clients have in common what any training has."""
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
    """Whether a further coherent group is more than a loner or two clients with some luck."""
    if len(group) == 2 and len(main) > 1:
        return levels.level(group).mean >= PAIR_LEVEL * levels.level(main).mean
    return len(group) > 2


def _without_guests(
    levels: PairLevels, group: Sequence[int], main: Sequence[int], copies: dict[int, int]
) -> tuple[int, ...]:
    """The members of another group that are not at home in the main one as well: a stranger
    who makes an update like somebody's must not take that client along. Among clients that are
    nearly the same, anybody may be the victim."""
    if far_tighter(levels, group, main):  # everybody is at home where next to nothing is shared
        return tuple(group)
    bar = VICTIM if any(copies.get(k) in group for k in group) else AT_HOME
    return tuple(k for k in group if not alignment(levels, k, main).ratio >= bar)


def _belongs(levels: PairLevels, client: int, group: Sequence[int]) -> bool:
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
        clients: who may be a member; those of other coherent groups are not among them.

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
