"""The numbers behind a verdict: alignment, off-subspace share, norms, place in the subspace.

Each is anchored in absolute terms (the collaborative set's own level, its median norm, its
typical distance), never in a rank or a z-score among few clients, and each holds a client
against the *other* members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import MIN_MODULES, PairLevels
from clair_cli.maths.judge.client_scores import CLIENT_SCORES, median_ratio
from clair_cli.maths.judge.groups import Alignment, alignment
from clair_cli.maths.judge.thresholds import MIN_MEMBERS, ODD_RATIO


@dataclass(frozen=True)
class Scores:
    """One client's scores; NaN where a number does not exist.

    Attributes:
        alignment: similarity to the set over the set's own level, with its standard error.
        separation: share of comparisons in which a pair inside the set is more similar than
            the client is to a member; 1 when it is clearly outside, 0.5 (nothing shown) with
            fewer than three other members.
        clear: whether every pair of other members is more similar than the client is to any of
            them, by two standard errors.
        captured: energy of the client's unit-norm update inside the subspace that the other
            members share, 0 to 1.
        captured_ratio: the same over the members' median.
        values: the scores of `client_scores.CLIENT_SCORES` by name; also `scores["norm"]`. And
            `member_p`, see `member_probability`.
        odd_modules: indices of modules in which an otherwise aligned client is not.
        module_similarity: to the other members in each module, (n_modules,).
        module_captured: as `captured`, per module, (n_modules,).
    """

    alignment: Alignment
    separation: float
    clear: bool
    captured: float
    captured_ratio: float
    values: Mapping[str, float]
    odd_modules: tuple[int, ...]
    module_similarity: Tensor
    module_captured: Tensor

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def captured_by_mean(cosines: Tensor, members: Sequence[int]) -> Tensor:
    """Share of each client's energy along the mean of the *other* members (matrix stacking).

    The shared subspace is a line there. Its leading singular vector would do but for two
    clients that are much alike, who make a stronger one between them.

    Args:
        cosines: of the clients' updates, 0 where one has none, (n_modules, n_clients, n_clients).

    Returns:
        Shape (n_modules, n_clients), 0 to 1; 0 for a client opposite to the mean.
    """
    own = torch.zeros(cosines.shape[-1], dtype=cosines.dtype)
    own[list(members)] = 1.0
    energy = cosines.diagonal(dim1=1, dim2=2)
    with_members = cosines @ own  # of each client's update, and the members' sum
    inner = with_members - energy * own
    size = (with_members @ own)[:, None] - own * (2.0 * with_members - energy)  # of others' sum
    sizes = size * energy
    captured: Tensor = torch.where(
        sizes > 0, inner.clamp_min(0.0).square() / sizes.clamp_min(1e-300), 0.0
    )
    return captured.clamp_max(1.0)


def module_similarities(levels: PairLevels, client: int, members: Sequence[int]) -> Tensor:
    others = [j for j in members if j != client]
    return torch.from_numpy(levels.between([client], others))


def _separation(levels: PairLevels, client: int, members: Sequence[int]) -> float:
    others = [j for j in members if j != client]
    return levels.separation(others, [client]) if len(others) > 2 else 0.5


def member_probability(ratios: Sequence[float], client: int, members: Sequence[int]) -> float:
    """Chance of a further member with an alignment as low as this client's, 0 to 1, from the
    other members' (Student's t); 1 with fewer than three of them.

    Args:
        ratios: alignment of every client.
    """
    others = torch.tensor([ratios[j] for j in members if j != client], dtype=torch.float64)
    if len(others) < 3 or ratios[client] != ratios[client]:
        return 1.0
    from scipy.special import stdtr  # Student's t; a fifth of a second

    spread = float(others.std()) * (1.0 + 1.0 / len(others)) ** 0.5
    depth = (float(others.mean()) - ratios[client]) / max(spread, 1e-12)
    return float(stdtr(len(others) - 1, -depth))


def odd_modules(similarities: Tensor, client: int, members: Sequence[int]) -> tuple[int, ...]:
    """Modules in which one client is unlike the others although it is like them elsewhere.

    Below ODD_RATIO of the level that the client's other modules lead to expect, and as many
    of the members' standard deviations below their mean as one normal variable in
    n_modules x n_clients would reach about once in a thousand cohorts, doubled: spreads of
    few members are rough.

    Args:
        similarities: of every client to the other members, (n_modules, n_clients).
    """
    others = [j for j in members if j != client]
    if len(others) < MIN_MEMBERS or len(similarities) < MIN_MODULES:
        return ()
    mean, spread = similarities[:, others].mean(1), similarities[:, others].std(1)
    value = similarities[:, client]
    expected = mean * (value / mean).nanmedian()
    looks = float(similarities.numel())
    bar = 2.0 * (2.0 * torch.log(torch.tensor(1000.0 * looks))).sqrt()
    odd = (mean > 0) & (value < ODD_RATIO * expected) & (value < expected - bar * spread)
    return tuple(int(m) for m in torch.nonzero(odd).flatten())


def score_clients(
    evidence: Evidence,
    levels: PairLevels,
    members: Sequence[int],
    captured: Tensor,
    module_captured: Tensor,
    copies: Mapping[int, int],
) -> list[Scores]:
    """All scores of all clients against a collaborative set.

    Args:
        copies: client -> the first of those it is nearly the same as; it is not held against
            that one.
        members: the set.
        captured: of `collaborate`, (n_modules, n_clients); one row in the matrix stacking.
            module_captured: the same module by module.
    """
    n_clients = evidence.norms.shape[1]
    against = [[j for j in members if j != copies.get(k)] for k in range(n_clients)]
    similarities = torch.stack(
        [module_similarities(levels, k, against[k]) for k in range(n_clients)], dim=1
    )
    values = {name: score(evidence, members) for name, score in CLIENT_SCORES.items()}
    mean_captured = captured.mean(0)
    captured_ratio = median_ratio(mean_captured, members)
    aligned = [alignment(levels, k, against[k]) for k in range(n_clients)]
    ratios = [found.ratio for found in aligned]
    values["member_p"] = torch.tensor(
        [member_probability(ratios, k, members) for k in range(n_clients)], dtype=torch.float64
    )
    return [
        Scores(
            alignment=aligned[k],
            separation=_separation(levels, k, against[k]),
            clear=len(against[k]) > 2 and not levels.few and levels.clear(against[k], [k]),
            captured=float(mean_captured[k]),
            captured_ratio=float(captured_ratio[k]),
            values={name: float(value[k]) for name, value in values.items()},
            odd_modules=odd_modules(similarities, k, members),
            module_similarity=similarities[:, k],
            module_captured=module_captured[:, k],
        )
        for k in range(n_clients)
    ]
