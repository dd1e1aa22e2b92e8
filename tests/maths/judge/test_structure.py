"""Votes and groups of whole planted cohorts: who acts together, and whom that can harm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.thresholds import SECOND_GROUP_SHARE
from tests.planted import aligned, codes, factor_all, judge_deltas, judge_factors, low_rank, words

# Large enough that chance similarities stay far below those planted.
WIDE = ((96, 64), (64, 96)) * 3
Deltas = list[Tensor]


def unit(delta: Tensor) -> Tensor:
    return delta / torch.linalg.matrix_norm(delta)[..., None, None]


def noise(module: Tensor, count: int, seed: int, rank: int = 8) -> Tensor:
    """Updates of norm one that are unrelated to everything, (count, out, in)."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([low_rank(*module.shape[1:], rank, g) for _ in range(count)])


def with_more(deltas: Deltas, more: Callable[[int, Tensor], Tensor]) -> Deltas:
    """The clients and, after them, those that `more` makes of each module (index, tensor)."""
    return [torch.cat([module, more(m, module)]) for m, module in enumerate(deltas)]


def copied(deltas: Deltas, victim: int, count: int, away: float, size: float = 1.0) -> Deltas:
    """`count` delta weights like the victim's, noise of norm `away` on top, of norm `size`."""
    return with_more(
        deltas, lambda m, d: size * unit(d[victim : victim + 1] + away * noise(d, count, 9 + m))
    )


def inside_mean(deltas: Deltas, count: int) -> Deltas:
    """Updates with the others' mean and one strong thing of their own, all the same."""
    return with_more(
        deltas,
        lambda m, d: unit(
            0.5 * unit(d.mean(0, keepdim=True))
            + 0.3 * noise(d, count, 77 + m)
            + 0.8 * noise(d, 1, 500 + m, 4)
        ),
    )


def strangers(deltas: Deltas, count: int) -> Deltas:
    """Updates like what only client 0 has: half of it is its own part, half is noise."""
    return with_more(
        deltas,
        lambda m, d: unit(unit(d[:1] - d[1:].mean(0, keepdim=True)) + noise(d, count, 5 + m)),
    )


def backdoored(topic: float = 0.4, common: float = 0.4, own: float = 0.9) -> Deltas:
    """Nine honest clients with two of five topics each, so that pairs are of all levels, and
    four like them with one thing besides."""
    chosen = np.random.default_rng(0)
    weights = torch.zeros(13, 7, dtype=torch.float64)
    for k in range(13):
        weights[k, 0] = common
        weights[k, 1 + chosen.permutation(5)[:2]] = topic
    rest = (1.0 - weights.square().sum(1)).sqrt()
    weights[9:, 6] = own
    g = torch.Generator().manual_seed(0)
    deltas = []
    for shape in WIDE:
        shared = torch.stack([low_rank(*shape, 4, g) for _ in range(7)])
        alone = torch.stack([low_rank(*shape, 4, g) for _ in range(13)])
        made = torch.einsum("kf,foi->koi", weights, shared) + rest[:, None, None] * alone
        deltas.append(unit(made))
    return deltas


def rank_of(deltas: Sequence[Tensor]) -> int:
    g, ranks = torch.Generator().manual_seed(0), list[int]()
    for module in deltas:  # of what is left on some random vectors, for less than of the whole
        seen = module @ torch.randn(module.shape[2], 24, generator=g, dtype=module.dtype)
        ranks.append(int(torch.linalg.matrix_rank(seen, rtol=1e-6).max()))
    if max(ranks) < 24:
        return max(ranks)
    return max(int(torch.linalg.matrix_rank(module, rtol=1e-6).max()) for module in deltas)


def judged(deltas: Sequence[Tensor]) -> Judgement:
    result = judge_deltas(deltas, rank_of(deltas))
    assert result.outcome == "judged", result.text
    return result


def short(result: Judgement) -> str:
    """Verdicts as one letter each."""
    return "".join(word[0] for word in words(result))


# Made when a test asks for one: verdicts are their first letters.
COHORTS: dict[str, tuple[Callable[[], Deltas], str]] = {
    "near copies of an honest client": (
        lambda: copied(aligned([0.25] * 8, shapes=WIDE, seed=3), 2, 2, 0.3),
        "bbsbbbbbss",
    ),
    "near copies of an unrelated one": (
        lambda: copied(aligned([0.25] * 7 + [0.0], shapes=WIDE, seed=3), 7, 3, 0.3),
        "b" * 7 + "c" * 4,
    ),
    "sybils with the mean inside": (
        lambda: inside_mean(aligned([0.2] * 7, shapes=WIDE, seed=1), 3),
        "b" * 7 + "sss",
    ),
    "alike, and 60 % unrelated": (
        lambda: aligned([0.7] * 4 + [0.0] * 6, shapes=WIDE),
        "b" * 4 + "c" * 6,
    ),
    "strangers like a victim": (
        lambda: strangers(aligned([0.2] * 9, shapes=WIDE), 2),
        "b" * 9 + "cc",
    ),
    "a backdoor in four of 13": (backdoored, "b" * 9 + "mmmm"),
    "a crowd that shares little, and four that share a lot": (
        lambda: aligned([0.04] * 10 + [0.5] * 4, [0] * 10 + [1] * 4, shapes=WIDE),
        "b" * 10 + "c" * 4,
    ),
}


@functools.cache
def cohort(name: str) -> Deltas:
    return COHORTS[name][0]()


@functools.cache
def judged_cohort(name: str) -> Judgement:
    return judged(cohort(name))


@pytest.mark.parametrize("name", COHORTS)
def test_verdicts(name: str) -> None:
    assert short(judged_cohort(name)) == COHORTS[name][1]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", COHORTS)
def test_neither_order_nor_a_common_scale_matters(name: str, seed: int) -> None:
    """Verdicts move with their clients; so do copies, but for who is the first of them."""
    deltas, expected = cohort(name), COHORTS[name][1]
    order = np.random.default_rng(seed).permutation(len(expected)).tolist()
    before = judged_cohort(name)
    after = judged([(1e-3, 1e3)[seed] * module[order] for module in deltas])
    assert short(after) == "".join(expected[k] for k in order)
    for position, k in enumerate(order):
        assert codes(after, position) == codes(before, k)
        assert after.verdicts[position].influence == pytest.approx(before.verdicts[k].influence)

    def clusters(found: dict[int, int], place: Sequence[int]) -> set[frozenset[int]]:
        return {
            frozenset(place[k] for k in range(len(place)) if found.get(k, k) == first)
            for first in found.values()
        }

    before_copies = clusters(before.structure.copies, range(len(order)))
    assert clusters(after.structure.copies, order) == before_copies
    apart = {frozenset(order[k] for k in m.members) for m in after.structure.minorities}
    if not before_copies:
        assert apart == {frozenset(m.members) for m in before.structure.minorities}


# Copies


def test_copies_are_no_voices_of_their_own() -> None:
    deltas = cohort("near copies of an honest client")
    modules = factor_all(deltas, rank_of(deltas))
    result = judge_factors(modules, WIDE)
    assert result.structure.copies == {8: 2, 9: 2}
    assert result.structure.distinct == result.structure.group == tuple(range(8))
    assert result.structure.singletons == ()
    assert all("near_copy" in codes(result, k) for k in (2, 8, 9))
    assert "c8, c9" in result.verdicts[2].findings[-1].text
    alone = judge_factors([clients[:8] for clients in modules], WIDE)  # in the same gauges
    assert result.scores is not None
    assert alone.scores is not None
    for k in range(8):  # nobody's loading is changed by them
        assert result.scores[k].loading == pytest.approx(alone.scores[k].loading, abs=1e-9)


def test_copies_follow_their_first_into_another_group() -> None:
    """Three colluders, one of them with two near copies."""
    deltas = aligned([0.3] * 9 + [0.4] * 3, [0] * 9 + [1] * 3, shapes=WIDE, seed=2)
    result = judged(copied(deltas, 9, 2, 0.25))
    assert result.structure.copies == {12: 9, 13: 9}
    assert result.structure.others == ((9, 10, 11),)
    assert short(result) == "b" * 9 + "c" * 5
    assert all({"in_a_group", "near_copy"} <= codes(result, k) for k in (9, 12, 13))


def test_duplicates_of_near_copies_are_duplicates() -> None:
    near = cohort("near copies of an honest client")
    result = judged(with_more(near, lambda m, d: torch.cat([d[2:3], d[8:9], 5 * d[9:10]])))
    assert short(result) == "bbsbbbbbssddd"
    assert result.structure.duplicates == {10: 2, 11: 8, 12: 9}
    assert result.structure.copies == {8: 2, 9: 2}
    assert [v.influence for v in result.verdicts[10:]] == [0.0] * 3


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_where_all_are_nearly_the_same_all_count(n: int) -> None:
    result = judge_deltas(aligned([0.97] * n, shapes=WIDE, seed=1), 8)
    assert result.outcome == "judged"
    assert result.structure.copies == {}
    assert result.structure.group == tuple(range(n))
    assert "contaminated" not in words(result)


@pytest.mark.parametrize("n_modules", [1, 2, 3])
def test_copies_are_seen_in_few_modules_too(n_modules: int) -> None:
    name = "near copies of an honest client"
    assert short(judged(cohort(name)[:n_modules])) == COHORTS[name][1]


def test_a_large_near_copy_does_not_speak_for_its_victim() -> None:
    deltas = copied(aligned([0.25] * 8, shapes=WIDE, seed=3), 2, 1, 0.3, size=10.0)
    for order in (range(9), [8, *range(8)]):  # whoever comes first
        result = judged([module[list(order)] for module in deltas])
        found = dict(zip(order, words(result), strict=True))
        assert found[8] == "contaminated"
        assert found[2] == "suspicious"
        assert [found[k] for k in range(8) if k != 2] == ["benign"] * 7


# Sybils, strangers, crowds


@pytest.mark.parametrize(("n_honest", "n_bad"), [(7, 3), (8, 4)])
def test_sybils_do_not_evict_the_honest(n_honest: int, n_bad: int) -> None:
    """Their pairs are far above everybody's; without one vote for all they leave no majority."""
    deltas = inside_mean(aligned([0.2] * n_honest, shapes=WIDE, seed=1), n_bad)
    result = judged(deltas)
    assert short(result) == "b" * n_honest + "s" * n_bad
    assert len(result.structure.copies) == n_bad - 1
    assert set(range(n_honest)) <= set(result.structure.group)


@pytest.mark.parametrize("cosine", [0.6, 0.9])
def test_a_homogeneous_cluster_is_no_single_vote(cosine: float) -> None:
    """Unrelated clients make any who share look nearly the same; they share, they count."""
    result = judged(aligned([cosine] * 8 + [0.0] * 12, shapes=WIDE))
    assert result.structure.copies == {}
    assert result.structure.group == tuple(range(8))
    assert [v.influence for v in result.verdicts] == [1.0] * 8 + [0.0] * 12


def test_strangers_do_not_take_a_victim_along() -> None:
    """They share nothing with the others, and are tied to one of them."""
    result = judged(cohort("strangers like a victim"))
    assert codes(result, 0) == set()
    assert all(codes(result, k) & {"unlike_the_others", "in_a_group"} for k in (9, 10))


def test_who_is_left_and_alike_is_named_together() -> None:
    """Two honest populations that have nothing in common: the smaller is a set apart."""
    alike = judged(aligned([0.3] * 9 + [0.3] * 3, [0] * 9 + [1] * 3, shapes=WIDE, seed=2))
    assert alike.structure.others == ((9, 10, 11),)
    two = judged(aligned([0.3] * 9 + [0.3] * 2, [0] * 9 + [1] * 2, shapes=WIDE, seed=2))
    assert two.structure.others == ((9, 10),)
    assert all(codes(two, k) == {"in_a_group"} for k in (9, 10))
    none = judged(aligned([0.3] * 9 + [0.0] * 3, shapes=WIDE, seed=2))
    assert none.structure.others == ()
    assert all(codes(none, k) == {"unlike_the_others"} for k in (9, 10, 11))


def test_a_backdoor_shows_in_no_single_pair() -> None:
    """Its clients have most of what all share, and something of their own."""
    result = judged(backdoored())
    assert [m.members for m in result.structure.minorities] == [(9, 10, 11, 12)]
    assert all(codes(result, k) == {"minority"} for k in range(9, 13))
    assert result.scores is not None
    assert min(s.loading for s in result.scores) > 0.45


# Two groups


@pytest.mark.parametrize(
    ("sizes", "cosines", "blocked", "turned", "scale"),
    [
        ((8, 5), (0.1, 0.5), False, False, 1.0),
        ((8, 5), (0.1, 0.5), False, True, 50.0),
        ((8, 3), (0.1, 0.5), False, True, 50.0),
        ((8, 5), (0.3, 0.3), False, False, 1.0),
        ((8, 6), (0.3, 0.3), True, True, 50.0),  # nearly as many
        ((8, 6), (0.1, 0.5), True, False, 1.0),
    ],
)
def test_the_larger_of_two_groups_is_the_cohort_unless_the_other_is_nearly_as_large(
    sizes: tuple[int, int], cosines: tuple[float, float], blocked: bool, turned: bool, scale: float
) -> None:
    """However much each shares."""
    large, small = sizes
    assert blocked == (small > SECOND_GROUP_SHARE * large)
    deltas = aligned(
        [cosines[0]] * large + [cosines[1]] * small, [0] * large + [1] * small, shapes=WIDE
    )
    order = list(range(large + small))[:: -1 if turned else 1]
    result = judge_deltas([scale * module[order] for module in deltas], 8)
    if blocked:
        assert (result.outcome, result.code) == ("undetermined", "two_groups")
        assert f" {large} (" in result.text
        assert f" {small} (" in result.text
    else:
        expected = "b" * large + "c" * small
        assert (result.outcome, short(result)) == ("judged", expected[:: -1 if turned else 1])
        apart = {k for k in range(large + small) if "in_a_group" in codes(result, k)}
        assert {order[k] for k in apart} == set(range(large, large + small))


# Clients that train other modules


@pytest.mark.parametrize(("n_all", "n_first", "n_last"), [(2, 5, 5), (6, 3, 3), (4, 4, 4)])
def test_clients_of_different_modules_are_one_group(n_all: int, n_first: int, n_last: int) -> None:
    """Some train all modules, some the first half, some the last: no pair without a module in
    common says anything."""
    n = n_all + n_first + n_last
    shapes = WIDE * 2
    modules = factor_all(aligned([0.3] * n, shapes=shapes, seed=n_all), 8)
    for m in range(12):
        for k in range(n_all, n):
            if (k < n_all + n_first) == (m >= 6):
                modules[m][k] = None
    result = judge_factors(modules, shapes)
    assert result.outcome == "judged"
    assert words(result) == ["benign"] * n


def test_nothing_to_arrange() -> None:
    """Nothing is shared: what little there is by chance is no group that could be judged."""
    result = judge_deltas(aligned([0.0] * 3, shapes=WIDE), 8)
    assert result.outcome == "undetermined"
    assert not any(group.is_sure for group in result.structure.groups)
    assert result.structure.others == ()
