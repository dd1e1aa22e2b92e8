"""The votes and the groups of a cohort: which clients count as one, and who belongs with whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.tables import in_blocks
from clair_cli.maths.judge.client_scores import norm_ratio
from clair_cli.maths.judge.copies import copy_sets, near_copies
from clair_cli.maths.judge.factor import Loadings
from clair_cli.maths.judge.groups import Group, find_groups
from clair_cli.maths.judge.minority import Minority
from clair_cli.maths.judge.pairs import pairs_of
from clair_cli.maths.judge.signature import Signatures, signatures_of
from clair_cli.maths.judge.thresholds import DUPLICATE_COSINE, NORM_CAP
from clair_cli.maths.judge.ties import answerable

# Sides of the delta weights in which agreement is looked for if their directions show none.
_SIDES = ("output", "input")


@dataclass(frozen=True)
class Structure:
    """Who counts as one, and the groups that the clients' similarities show.

    Attributes:
        duplicates: client -> the first client (in the given order) it equals up to scale.
        empty: clients whose delta weights are all zero.
        copies: client -> the first of the clients it is nearly the same as; one vote for all.
        distinct: the other clients, one vote each.
        stacking: "matrix" where the groups are of whole delta weights; "output" or "input" where
            only that side shows any; None where nothing does.
        side: the side that all clients share though their whole delta weights show too little,
            which is no verdict; None if there is none.
        groups: the cohort first; () if no three clients have anything in common.
        signatures: of all clients.
    """

    duplicates: dict[int, int]
    empty: tuple[int, ...]
    copies: dict[int, int]
    distinct: tuple[int, ...]
    stacking: str | None = None
    side: str | None = None
    groups: tuple[Group, ...] = ()
    signatures: Signatures | None = None

    @property
    def group(self) -> tuple[int, ...]:
        """Members of the cohort's group; () if there is none."""
        return self.groups[0].members if self.groups else ()

    @property
    def loadings(self) -> Loadings | None:
        """Of all clients on what the cohort's group has in common."""
        return self.groups[0].loadings if self.groups else None

    @property
    def tied(self) -> dict[int, tuple[int, ...]]:
        """Member -> those it shares a vote with, for what only the two have or lack."""
        return answerable(self.groups[0].ties, self.group) if self.groups else {}

    @property
    def minorities(self) -> tuple[Minority, ...]:
        """Sets that share something of their own beside what the cohort's group shares."""
        if not self.groups:
            return ()
        return tuple(m for m in self.groups[0].minorities if not self._lacks(m.members))

    @property
    def others(self) -> tuple[tuple[int, ...], ...]:
        """Further groups and their minorities, and sets that share something of their own and not
        what the cohort's group shares, of two that are tied too; the largest first."""
        if not self.groups:
            return ()
        sets = [group.members for group in self.groups[1:]]
        sets += [m.members for group in self.groups[1:] for m in group.minorities]
        sets += [m.members for m in self.groups[0].minorities if self._lacks(m.members)]
        for tie in (tie for group in self.groups for tie in group.ties if self._lacks(tie)):
            if not any(k in found for k in tie for found in sets):
                sets.append(tie)
        return tuple(sorted(sets, key=lambda s: (-len(s), s)))

    def _lacks(self, members: Sequence[int]) -> bool:
        """Whether all of some clients clearly lack what the cohort's group shares."""
        return all(self.groups[0].loadings.is_below(k) for k in members)

    @property
    def singletons(self) -> tuple[int, ...]:
        """Distinct clients in no group and no minority."""
        grouped = {k for g in self.groups for k in g.members}
        grouped |= {k for g in self.groups for m in g.minorities for k in m.members}
        grouped |= {k for members in self.others for k in members}
        return tuple(k for k in self.distinct if k not in grouped)


def joint_cosine(evidence: Evidence) -> Tensor:
    """Cosine of the clients' delta weights of all modules as one long vector each.

    Returns:
        Shape (n_clients, n_clients), -1 to 1 up to rounding; 0 for a client whose delta weights are
        all zero.
    """
    share = _unit_columns(evidence.norms)

    def of(rows: slice) -> Tensor:
        cosines = torch.nan_to_num(evidence.matrix.value[:, rows], nan=0.0)
        return (cosines * share[:, rows, None] * share[:, None, :]).sum(0)

    return in_blocks(of, evidence.matrix.value.shape)


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
    alike = (cosine >= DUPLICATE_COSINE).tolist()
    first: dict[int, int] = {}
    kept: list[int] = []
    for k in sorted(clients, key=lambda k: (k not in trusted, k not in ordinary)):  # stable
        same = [j for j in kept if alike[j][k]]
        if same:
            first[k] = same[0]
        else:
            kept.append(k)
    return first


def find_structure(
    evidence: Evidence, trusted: Sequence[int] = (), ranks: Sequence[int] | None = None
) -> Structure:
    """Find duplicates, empty clients, near copies, and the groups.

    Clients that are nearly the same count as one at first, because a few who act together would
    else be the most coherent group there is. Where that leaves no group that can be judged, or one
    that is no larger than the largest set of near copies, the near copies may be the clients that
    share, and all clients count one by one.

    Args:
        trusted: clients whose group is the cohort, whatever its size.
        ranks: numbers of rank-one components of the clients; None if they are the same.
    """
    alive = evidence.norms.amax(0) > 0
    empty = tuple(k for k in range(len(alive)) if not bool(alive[k]))
    present = [k for k in range(len(alive)) if bool(alive[k])]
    duplicates = find_duplicates(evidence, present, trusted)
    distinct = tuple(k for k in present if k not in duplicates)
    copies = _trusted_first(near_copies(evidence.levels("matrix"), distinct), trusted)
    signatures = signatures_of(evidence, ranks)
    if copies:
        single = tuple(k for k in distinct if k not in copies)
        start = Structure(duplicates, empty, copies, single, signatures=signatures)
        found = _grouped(evidence, start, trusted)
        largest = 1 + max(Counter(copies.values()).values())
        if found.groups and found.groups[0].is_sure and len(found.group) > largest:
            return found
    start = Structure(duplicates, empty, {}, distinct, signatures=signatures)
    return _grouped(evidence, start, trusted)


def _grouped(evidence: Evidence, start: Structure, trusted: Sequence[int]) -> Structure:
    """Fill in the groups of the distinct clients of `start`. A side of the delta weights counts
    only with contrast: where somebody stands clearly outside."""
    assert start.signatures is not None
    clients = [k for k in start.distinct if _has_half(evidence, k)]
    found = find_groups(pairs_of(evidence, clients=clients), start.signatures, clients, trusted)
    matrix = replace(start, stacking="matrix" if found else None, groups=tuple(found))
    if found and found[0].is_sure:
        return matrix
    for side in _SIDES:
        found = find_groups(pairs_of(evidence, side, clients), None, clients, trusted)
        if not found or not found[0].is_sure or 2 * len(found[0].members) < len(clients):
            continue
        if any(found[0].loadings.is_below(k) for k in clients):
            return replace(start, stacking=side, groups=tuple(found))
        matrix = replace(matrix, side=matrix.side or side)
    return matrix


def _has_half(evidence: Evidence, client: int) -> bool:
    """Whether a client has an update in half of the modules that anybody has one in."""
    has = evidence.norms > 0
    return 2 * int(has[:, client].sum()) >= int(has.any(1).sum())


def _trusted_first(copies: dict[int, int], trusted: Sequence[int]) -> dict[int, int]:
    """The same sets of near copies, with a trusted client as the first of each."""
    found: dict[int, int] = {}
    for same in copy_sets(copies):
        front = next((k for k in same if k in trusted), same[0])
        found |= {k: front for k in same if k != front}
    return found
