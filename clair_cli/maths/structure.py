"""Where sharing is found, and which coherent groups there are.

Three stackings of the same tensors are looked at (similarity.py). `matrix` comes first: on
trained adapters it is the one that separates, while generic output directions are shared by
everybody. `output` and `input` decide where the matrix stacking shows nothing, as in data
whose clients share a subspace but not their coefficients in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence import Evidence
from clair_cli.maths.groups import (
    LONER_RATIO,
    SEPARATION,
    Level,
    PairLevels,
    alignment,
    coherent_groups,
    excess_table,
)
from clair_cli.maths.loadings import inner_group, trimmed
from clair_cli.maths.similarity import STACKINGS

# Delta weights this alike are one vote (any gauge, any positive factor).
DUPLICATE_COSINE = 0.999
# A pair set apart as a group of two must be about as coherent as the main group: two honest
# clients that share other data besides are less so.
PAIR_LEVEL = 0.9
# A second coherent group larger than this share of the largest leaves no majority.
SECOND_GROUP_SHARE = 0.7
# Least significant level, in standard errors over modules (with 4 modules or more).
MIN_T = 3.0


@dataclass(frozen=True)
class Sharing:
    """What one stacking shows.

    Attributes:
        stacking: "matrix", "output" or "input".
        groups: coherent groups of the distinct clients, largest first.
        level: inside the largest group; NaN with fewer than two members.
        accepted: whether that is sharing rather than chance.
    """

    stacking: str
    groups: tuple[tuple[int, ...], ...]
    level: Level
    accepted: bool


@dataclass(frozen=True)
class Structure:
    """Groups that the pairwise similarities suggest.

    Attributes:
        duplicates: client -> the first client (in the given order) it equals up to scale.
        empty: clients without any update.
        distinct: the clients left, one vote each.
        sharings: one per stacking.
        stacking: where sharing was found, or None.
        group: the largest coherent group there.
        others: further groups of two or more, largest first.
    """

    duplicates: dict[int, int]
    empty: tuple[int, ...]
    distinct: tuple[int, ...]
    sharings: tuple[Sharing, ...]
    stacking: str | None
    group: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]

    @property
    def loners(self) -> tuple[int, ...]:
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
        clients: in order of content: the first of each group of equals keeps its vote.

    Returns:
        Client -> the first of its group; the first ones themselves are no keys.
    """
    cosine = joint_cosine(evidence)
    first: dict[int, int] = {}
    kept: list[int] = []
    for k in clients:
        same = [j for j in kept if float(cosine[j, k]) >= DUPLICATE_COSINE]
        if same:
            first[k] = same[0]
        else:
            kept.append(k)
    return first


def pair_levels(evidence: Evidence, stacking: str) -> PairLevels:
    table = evidence.table(stacking)
    return PairLevels(excess_table([table.value], [table.null]))


def find_sharing(evidence: Evidence, stacking: str, clients: Sequence[int]) -> Sharing:
    """The coherent groups of one stacking, and whether the largest is more than chance.

    Args:
        clients: the distinct ones, with an update.

    Returns:
        `accepted` with three members or more whose level is significant (MIN_T standard errors
        with four modules or more) and, in `matrix`, beyond chance.
    """
    levels = pair_levels(evidence, stacking)
    groups = coherent_groups(levels, clients)
    largest = groups[0] if groups else ()
    if len(largest) < 2:
        return Sharing(stacking, tuple(groups), Level(float("nan"), 0.0), False)
    level = levels.level(largest)
    significant = level.mean > 0 and (levels.few or level.mean >= MIN_T * level.se)
    accepted = len(largest) >= 3 and significant
    if accepted and stacking == "matrix":
        accepted = _beyond_chance(evidence, levels, clients, largest)
    return Sharing(stacking, tuple(groups), level, accepted)


def _beyond_chance(
    evidence: Evidence, levels: PairLevels, clients: Sequence[int], group: Sequence[int]
) -> bool:
    """Whether cosines show a common direction rather than luck in picking a group: no choice
    of a group from unrelated clients can beat the largest eigenvalue of their cosines."""
    return (len(group) - 1) * levels.level(group).mean >= chance_edge(evidence, clients)


def chance_edge(evidence: Evidence, clients: Sequence[int]) -> float:
    """Largest eigenvalue that the cosines of unrelated clients have, besides their ones.

    Turned at random on the right, two unit updates keep their column spaces and have a cosine
    of variance <D_j D_j', D_k D_k'> / in (on the left: <D_j' D_j, D_k' D_k> / out); that covers
    clients that share a subspace and nothing else. A mean over modules divides it by their
    number, and n such columns have their largest eigenvalue at (1 + sqrt(n variance))^2.

    Source: V. Marchenko, L. Pastur, Math. USSR-Sbornik 1(4), 1967.
    """
    energy = evidence.effective_ranks[:, :, None] * evidence.effective_ranks[:, None, :]
    output = evidence.output.value * evidence.input.null / energy
    input_ = evidence.input.value * evidence.output.null / energy
    index = torch.tensor(list(clients))
    variance = torch.maximum(output, input_)[:, index][:, :, index]
    variance = variance[:, ~torch.eye(len(index), dtype=torch.bool)]
    count = (~torch.isnan(variance)).sum(0).clamp_min(1)
    mean: float = float((torch.nan_to_num(variance, nan=0.0).sum(0) / count**2).mean())
    edge: float = (1.0 + (len(index) * mean) ** 0.5) ** 2 - 1.0
    return edge


def _choose(sharings: Sequence[Sharing]) -> Sharing | None:
    matrix, *sides = sharings
    if matrix.accepted:
        return matrix
    accepted = [s for s in sides if s.accepted]
    return max(accepted, key=lambda s: s.level.mean) if accepted else None


def find_structure(evidence: Evidence) -> Structure:
    """Duplicates, empty updates, and coherent groups, in the stacking that shows sharing.

    Returns:
        `stacking` None and no groups where no stacking shows sharing beyond chance.
    """
    alive = evidence.norms.amax(0) > 0
    empty = tuple(k for k in range(len(alive)) if not bool(alive[k]))
    present = [k for k in range(len(alive)) if bool(alive[k])]
    duplicates = find_duplicates(evidence, present)
    distinct = tuple(k for k in present if k not in duplicates)
    sharings = tuple(find_sharing(evidence, s, distinct) for s in STACKINGS)
    chosen = _choose(sharings)
    if chosen is None:
        return Structure(duplicates, empty, distinct, sharings, None, (), ())
    levels = pair_levels(evidence, chosen.stacking)
    group = chosen.groups[0]
    others = tuple(
        g for g in chosen.groups[1:]
        if len(g) > 2 or (
            len(g) == 2
            and levels.level(g).mean >= PAIR_LEVEL * levels.level(group).mean
        )
    )  # fmt: skip
    apart = {k for g in others for k in g}
    free = [k for k in distinct if k not in apart]
    group = trimmed(levels, settle(levels, group, free))
    inner = inner_group(levels, group)
    if inner:
        group = trimmed(levels, [k for k in group if k not in inner])
        others = tuple(sorted((*others, inner), key=lambda g: (-len(g), g)))
    return Structure(duplicates, empty, distinct, sharings, chosen.stacking, group, others)


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
