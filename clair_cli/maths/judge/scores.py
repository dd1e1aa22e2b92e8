"""The numbers behind a client's verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import MIN_MODULES, PairLevels
from clair_cli.maths.judge.client_scores import CLIENT_SCORES
from clair_cli.maths.judge.groups import Group
from clair_cli.maths.judge.pairs import variances_by_chance
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.sizes import Sizes, sizes_of

# Below this many members a module's spread is not known well enough to single one out.
_MIN_MEMBERS = 6
# A module this far below what the client's other modules lead to expect is odd.
_ODD_RATIO = 0.25


@dataclass(frozen=True)
class Scores:
    """One client's scores; NaN where a number does not exist.

    Attributes:
        loading: how much it has of what the cohort shares, over the typical member; its standard
            error `loading_se`.
        is_below: whether it has clearly less than the line's fraction of what the cohort shares.
        is_opposite: whether its loading is clearly below zero (on a side, nothing is opposite).
        is_shown: whether it clearly has anything of what the cohort shares.
        is_less: whether it clearly has less of it than a typical member.
        p_line: probability of a loading as low for a client that has just the line's fraction.
        has_below: whether somebody else is below.
        p_odd: bound on the probability that any member's signature is as unlike the others'; 1 for
            a client that is no member.
        power: probability that it would be noticed if it were unrelated.
        over: its size over what is allowed, in logs; above 1 it is capped.
        values: the scores of `client_scores.CLIENT_SCORES` by name; also `scores["norm"]`.
        odd_modules: indices of modules in which an otherwise aligned client is not.
        module_similarity: to the other members in each module, (n_modules,); its standard
            deviation for an unrelated client `module_chance`.
    """

    loading: float
    loading_se: float
    is_below: bool
    is_opposite: bool
    is_shown: bool
    is_less: bool
    p_line: float
    has_below: bool
    p_odd: float
    power: float
    over: float
    values: Mapping[str, float]
    odd_modules: tuple[int, ...]
    module_similarity: Tensor
    module_chance: Tensor

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def module_similarities(levels: PairLevels, client: int, members: Sequence[int]) -> Tensor:
    """Mean similarity to the other members in each module, (n_modules,)."""
    others = [j for j in members if j != client]
    return torch.from_numpy(levels.between([client], others))


def odd_modules(similarities: Tensor, client: int, members: Sequence[int]) -> tuple[int, ...]:
    """Modules in which one client is unlike the others although it is like them elsewhere.

    Below a quarter of the level that the client's other modules lead to expect, and as many
    of the members' standard deviations below their mean as one normal variable in
    n_modules x n_clients would reach about once in a thousand cohorts, doubled: spreads of
    few members are rough.

    Args:
        similarities: of every client to the other members but for the lowest one, so that no one
            client makes another's module odd, (n_modules, n_clients).
    """
    others = [j for j in members if j != client]
    if len(others) < _MIN_MEMBERS or len(similarities) < MIN_MODULES:
        return ()
    mean, spread = similarities[:, others].mean(1), similarities[:, others].std(1)
    value = similarities[:, client]
    expected = mean * (value / mean).nanmedian()
    looks = float(similarities.numel())
    bar = 2.0 * (2.0 * torch.log(torch.tensor(1000.0 * looks))).sqrt()
    odd = (mean > 0) & (value < _ODD_RATIO * expected) & (value < expected - bar * spread)
    return tuple(int(m) for m in torch.nonzero(odd).flatten())


def _deviations(evidence: Evidence, stacking: str, against: Sequence[Sequence[int]]) -> Tensor:
    """Of each client's mean similarity to others by chance, NaN where there is none, (n_modules,
    n_clients).

    Args:
        against: those others, of each client; itself does not count.
    """
    counted = torch.zeros(len(against), len(against), dtype=torch.bool)
    for k, others in enumerate(against):
        counted[k, [j for j in others if j != k]] = True
    found = []
    for variance in variances_by_chance(evidence, stacking):
        count = (torch.isfinite(variance) & counted).sum(1)
        total = torch.where(counted, torch.nan_to_num(variance, nan=0.0), 0.0).sum(1).sqrt()
        found.append(torch.where(count > 0, total / count.clamp_min(1), torch.nan))
    return torch.stack(found)


def score_clients(
    evidence: Evidence,
    stacking: str,
    group: Group,
    signatures: Signatures,
    copies: Mapping[int, int],
) -> tuple[list[Scores], Sizes]:
    """All scores of all clients against the cohort's group, and the sizes.

    Args:
        stacking: of the group, "matrix", "output" or "input".
        signatures: of all clients.
        copies: client -> the first of those it is nearly the same as; it is not held against
            that one.
    """
    n_clients, members, held = evidence.norms.shape[1], group.members, group.loadings
    levels = evidence.levels(stacking)
    apart = {(k, j) for pair in group.ties for j, k in (pair, pair[::-1])} | set(copies.items())
    against = [[j for j in members if (k, j) not in apart] for k in range(n_clients)]
    similarities = torch.stack(
        [module_similarities(levels, k, against[k]) for k in range(n_clients)], dim=1
    )
    most = [torch.from_numpy(levels.without_lowest(k, against[k])) for k in range(n_clients)]
    most_similar = torch.stack(most, dim=1)
    deviations = _deviations(evidence, stacking, against)
    sizes = sizes_of(evidence, members)
    values = {name: score(evidence, members) for name, score in CLIENT_SCORES.items()}
    odd = _odd(signatures, held.ratio, members)
    p_line, power = held.p_line, held.power
    below = {k for k in range(n_clients) if held.is_below(k)}
    found = [
        Scores(
            float(held.ratio[k]), float(held.se[k]), k in below,
            stacking == "matrix" and held.is_opposite(k),
            held.is_shown(k),
            float(held.ratio[k]) < 1.0 - held.bar * float(held.se[k]), float(p_line[k]),
            bool(below - {k}), odd.get(k, 1.0), float(power[k]), sizes.over(k),
            {name: float(value[k]) for name, value in values.items()},
            odd_modules(most_similar, k, members), similarities[:, k],
            deviations[:, k],
        )
        for k in range(n_clients)
    ]  # fmt: skip
    return found, sizes


def _odd(signatures: Signatures, ratio: Tensor, members: Sequence[int]) -> dict[int, float]:
    """`Signatures.odd` of every member, times their number."""
    chosen = torch.tensor(sorted(members))
    among, own = signatures.of(chosen), ratio[chosen]
    return {int(k): min(1.0, len(chosen) * among.odd(i, own)) for i, k in enumerate(chosen)}
