"""The stacking in which clients share something, and a test whether it is more than chance.

There are three stackings of the same tensors (similarity.py). `matrix` comes first: it separates
trained adapters, while generic output directions are shared by everybody. `output` and `input`
decide where the matrix stacking shows nothing, as in data whose clients share a subspace but not
their coefficients in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import Level, PairLevels
from clair_cli.maths.judge.groups import coherent_groups
from clair_cli.maths.judge.thresholds import MIN_T


@dataclass(frozen=True)
class SharingTest:
    """Test of one stacking for sharing.

    Attributes:
        stacking: "matrix", "output" or "input".
        groups: coherent groups of the distinct clients, largest first.
        level: similarity inside the largest group; NaN with fewer than two members.
        accepted: whether the level is sharing rather than chance.
    """

    stacking: str
    groups: tuple[tuple[int, ...], ...]
    level: Level
    accepted: bool


def find_sharing(evidence: Evidence, stacking: str, clients: Sequence[int]) -> SharingTest:
    """The coherent groups of one stacking, and whether the largest is more than chance.

    Args:
        stacking: "matrix", "output" or "input".
        clients: the distinct ones, which have a nonzero delta weight.

    Returns:
        `accepted` with three members or more whose level is significant (MIN_T standard errors
        with four modules or more) and, in `matrix`, beyond chance.
    """
    levels = evidence.levels(stacking)
    groups = coherent_groups(levels, clients)
    largest = groups[0] if groups else ()
    if len(largest) < 2:
        return SharingTest(stacking, tuple(groups), Level(float("nan"), 0.0), False)
    level = levels.level(largest)
    significant = level.mean > 0 and (levels.few or level.mean >= MIN_T * level.se)
    accepted = len(largest) >= 3 and significant
    if accepted and stacking == "matrix":
        accepted = _beyond_chance(evidence, levels, clients, largest)
    return SharingTest(stacking, tuple(groups), level, accepted)


def _beyond_chance(
    evidence: Evidence, levels: PairLevels, clients: Sequence[int], group: Sequence[int]
) -> bool:
    """Whether cosines show a common direction rather than luck in picking a group: no choice
    of a group from unrelated clients can beat the largest eigenvalue of their cosines."""
    return (len(group) - 1) * levels.level(group).mean >= chance_edge(evidence, clients)


def chance_edge(evidence: Evidence, clients: Sequence[int]) -> float:
    """Largest eigenvalue of the cosines of unrelated clients, with the diagonal taken off.

    Two unit delta weights that are rotated at random on the right keep their column spaces, and
    have a cosine of variance <D_j D_j', D_k D_k'> / in (on the left: <D_j' D_j, D_k' D_k> / out);
    so the variance holds for clients that share a subspace and nothing else. A mean over modules
    divides it by their number, and n clients with such cosines have the largest eigenvalue
    (1 + sqrt(n variance))^2.

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


def choose_stacking(sharings: Sequence[SharingTest]) -> SharingTest | None:
    """The matrix stacking where it shows sharing, else the stronger of the two sides."""
    matrix, *sides = sharings
    if matrix.accepted:
        return matrix
    accepted = [s for s in sides if s.accepted]
    return max(accepted, key=lambda s: s.level.mean) if accepted else None
