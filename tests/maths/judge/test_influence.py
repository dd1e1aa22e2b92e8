"""How much each client counts: caps for the large, shares for the doubtful, one vote for copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.judge.groups import Alignment
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.scores import Scores, member_probability
from clair_cli.maths.judge.thresholds import (
    DOUBT_FLOOR,
    DOUBT_RATIO,
    LEAST_SHARE,
    LONER_RATIO,
    MEMBER_P,
    MODULE_NORM_CAP,
    NORM_CAP,
    NORM_SUSPICIOUS,
    SPREAD_ALIGNED,
)
from clair_cli.maths.judge.verdicts import Verdict, decide
from tests.planted import SHAPES, aligned, codes, judge_deltas, low_rank, words

MODULES = ("m",) * 6


def scores(
    ratio: float = 1.0,
    se: float = 0.0,
    *,
    separation: float = 0.5,
    clear: bool = False,
    captured_ratio: float = 1.0,
    **values: float,
) -> Scores:
    """A typical member's scores, but for what is given."""
    typical = {
        "norm": 1.0, "norm_ratio": 1.0, "module_norm_ratio": 1.0, "core_distance": 1.0,
        "effective_rank_ratio": 1.0, "member_p": 0.5,
    }  # fmt: skip
    return Scores(
        alignment=Alignment(0.3 * ratio, ratio, se),
        separation=separation,
        clear=clear,
        captured=0.5 * captured_ratio,
        captured_ratio=captured_ratio,
        values={**typical, **values},
        odd_modules=(),
        module_similarity=torch.full((6,), 0.3 * ratio),
        module_captured=torch.full((6,), 0.5 * captured_ratio),
    )


def rule(kept: bool, *args: Any, **kwargs: Any) -> Verdict:
    return decide(scores(*args, **kwargs), kept, "", True, MODULES)


def found(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def judged(deltas: Sequence[Tensor], rank: int = 8) -> Judgement:
    result = judge_deltas(deltas, rank)
    assert result.outcome == "judged", result.text
    return result


def influences(result: Judgement) -> list[float]:
    return [verdict.influence for verdict in result.verdicts]


# Sizes


@pytest.mark.parametrize("size", [0.5, 1.0, 1.45, 1.6, 2.0, 2.4])
def test_a_benign_client_counts_as_at_most_the_cap(size: float) -> None:
    verdict = rule(True, norm_ratio=size)
    assert verdict.verdict == "benign"
    assert verdict.influence == pytest.approx(min(1.0, NORM_CAP / size))
    assert (verdict.influence == 1.0) == (size <= NORM_CAP)
    assert verdict.influence * size <= NORM_CAP + 1e-12
    assert found(verdict) == ({"large"} if size > NORM_CAP else set())


@pytest.mark.parametrize("size", [2.0, 2.6, 4.9])
def test_so_does_one_large_in_a_module(size: float) -> None:
    verdict = rule(True, module_norm_ratio=size)
    assert verdict.verdict == "benign"
    assert verdict.influence == pytest.approx(min(1.0, MODULE_NORM_CAP / size))
    both = rule(True, norm_ratio=2.0, module_norm_ratio=size)
    assert both.influence == pytest.approx(min(NORM_CAP / 2.0, MODULE_NORM_CAP / size))


@pytest.mark.parametrize("size", [2.6, 3.0, 4.9])
def test_a_suspicious_client_counts_as_at_most_a_typical_one(size: float) -> None:
    verdict = rule(True, norm_ratio=size)
    assert (verdict.verdict, found(verdict)) == ("suspicious", {"norm"})
    assert verdict.influence * size == pytest.approx(1.0)


def test_small_delta_weights_are_not_enlarged() -> None:
    assert rule(True, norm_ratio=0.01).influence == 1.0
    vanishing = rule(True, norm_ratio=1e-4)
    assert (vanishing.verdict, vanishing.influence) == ("suspicious", 0.0)


@settings(max_examples=200, deadline=None)
@given(
    st.booleans(), st.floats(-1.0, 2.0), st.floats(0.0, 0.5), st.floats(0.0, 1.0), st.booleans(),
    st.floats(0.0, 3.0), st.floats(1e-4, 6.0), st.floats(1e-4, 12.0), st.floats(0.0, 4.0),
    st.sampled_from([1e-6, 0.01, 0.5]),
)  # fmt: skip
def test_nobody_counts_more_than_the_cap(
    kept: bool, ratio: float, se: float, separation: float, clear: bool, captured: float,
    norm: float, module: float, core: float, member_p: float,
) -> None:  # fmt: skip
    verdict = rule(
        kept, ratio, se, separation=separation, clear=clear, captured_ratio=captured,
        norm_ratio=norm, module_norm_ratio=module, core_distance=core, member_p=member_p,
    )  # fmt: skip
    assert 0.0 <= verdict.influence <= 1.0
    assert (verdict.influence == 0.0) == (verdict.verdict == "contaminated" or norm < 1e-3)
    assert verdict.influence * norm <= NORM_CAP + 1e-9
    if verdict.verdict == "suspicious":
        assert verdict.influence * norm <= 1.0 + 1e-9
        assert verdict.influence * module <= 2.0 + 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize("seed", range(2))
def test_in_a_clean_cohort_all_count_exactly_the_same(scale: float, seed: int) -> None:
    deltas = [scale * module for module in aligned([0.3] * 9, seed=seed + 4)]
    assert influences(judged(deltas)) == [1.0] * 9


@pytest.mark.parametrize("order", [range(9), range(8, -1, -1), (3, 8, 0, 5, 1, 7, 2, 6, 4)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_caps_move_with_their_clients(order: Sequence[int], scale: float) -> None:
    """Client 7 is 1.7 times as large, client 8 three times."""
    deltas = aligned([0.3] * 9, seed=4)
    for module in deltas:
        module[7] *= 1.7
        module[8] *= 3.0
    result = judged([scale * module[list(order)] for module in deltas])
    got = dict(zip(order, result.verdicts, strict=True))
    assert [got[k].influence for k in range(7)] == [1.0] * 7
    assert (got[7].verdict, found(got[7])) == ("benign", {"large"})
    assert got[7].influence == pytest.approx(NORM_CAP / 1.7, rel=0.01)
    assert (got[8].verdict, found(got[8])) == ("suspicious", {"norm"})
    assert got[8].influence == pytest.approx(1.0 / 3.0, rel=0.01)


# Doubtful ones


@pytest.mark.parametrize("captured", [0.0, 0.1, 0.2, 0.6, 1.0, 1.7])
def test_a_doubtful_client_counts_by_what_it_shares(captured: float) -> None:
    verdict = rule(False, 0.4, 0.2, separation=1.0, captured_ratio=captured)
    assert (verdict.verdict, found(verdict)) == ("suspicious", {"weakly_alike"})
    assert verdict.influence == min(1.0, max(LEAST_SHARE, captured))
    large = rule(False, 0.4, 0.2, separation=1.0, captured_ratio=captured, norm_ratio=2.0)
    assert large.influence == verdict.influence / 2.0


def test_a_member_with_another_finding_counts_fully() -> None:
    verdict = rule(True, captured_ratio=0.3, effective_rank_ratio=3.0)
    assert (verdict.verdict, found(verdict)) == ("suspicious", {"noise"})
    assert verdict.influence == 1.0
    assert scores().alignment.high >= SPREAD_ALIGNED


def half_alike(share: float, seed: int = 5) -> list[Tensor]:
    """Nine clients, the last of which has a part of what the others share."""
    deltas = aligned([0.4] * 9, shapes=SHAPES, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for module in deltas:
        own = low_rank(*module.shape[1:], 8, g)
        module[8] = share * module[8] + math.sqrt(1.0 - share * share) * own
    return deltas


@pytest.mark.parametrize(("share", "seed"), [(0.45, 5), (0.5, 6), (0.5, 7)])
def test_whole_cohorts_give_the_doubtful_their_share(share: float, seed: int) -> None:
    deltas = half_alike(share, seed)
    for order, scale in ((range(9), 1.0), ((4, 8, 0, 2, 6, 1, 3, 5, 7), 1e-3)):
        result = judged([scale * module[list(order)] for module in deltas], 16)
        last = list(order).index(8)
        assert result.scores is not None
        assert words(result).count("benign") == 8
        assert codes(result, last) == {"weakly_alike"}
        counted = min(1.0, max(LEAST_SHARE, result.scores[last].captured_ratio))
        large = max(1.0, result.scores[last]["norm_ratio"])
        assert result.verdicts[last].influence == pytest.approx(counted / large)
        assert 0.1 < result.verdicts[last].influence < 0.3


# The member's spread and the standard error


def test_member_probability_by_hand() -> None:
    ratios = [1.0, 1.1, 0.9, 1.04, 0.7]
    members = range(4)
    mean, spread = 1.01, math.sqrt((0.01**2 + 0.09**2 + 0.11**2 + 0.03**2) / 3.0)
    depth = (mean - 0.7) / (spread * math.sqrt(1.25))
    t = -depth / 3**0.5
    cdf = 0.5 + (t / (1 + t * t) + math.atan(t)) / math.pi  # three degrees of freedom
    assert member_probability(ratios, 4, members) == pytest.approx(cdf)
    # a member is held against the other three
    rest = np.array([1.0, 1.1, 1.04])
    depth = (rest.mean() - 0.9) / (rest.std(ddof=1) * math.sqrt(4 / 3))
    cdf = 0.5 - 0.5 * depth / (2 + depth * depth) ** 0.5  # two of them
    assert member_probability(ratios, 2, members) == pytest.approx(cdf)


def test_member_probability_without_a_spread() -> None:
    assert member_probability([1.0, 1.0, 0.1], 2, [0, 1]) == 1.0  # two others: unknown
    assert member_probability([1.0, 1.0, 1.0, math.nan], 3, [0, 1, 2]) == 1.0
    assert member_probability([1.0, 1.0, 1.0, 1.0], 3, [0, 1, 2]) == pytest.approx(0.5)
    assert member_probability([1.0, 1.0, 1.0, 0.9], 3, [0, 1, 2]) < 1e-9


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.1, 2.0), min_size=4, max_size=10), st.floats(0.1, 10.0), st.randoms())
def test_member_probability_knows_no_order_and_no_unit(
    ratios: list[float], unit: float, random: Any
) -> None:
    members = list(range(len(ratios) - 1))
    plain = member_probability(ratios, len(ratios) - 1, members)
    random.shuffle(members)
    assert member_probability(ratios, len(ratios) - 1, members) == pytest.approx(plain, abs=1e-6)
    if np.std(ratios[:-1]) > 1e-6:
        scaled = [unit * ratio for ratio in ratios]
        assert member_probability(scaled, len(ratios) - 1, members) == pytest.approx(
            plain, abs=1e-6
        )


def test_outside_the_members_spread_is_outside_without_separated_pairs() -> None:
    """Pairs of all levels hide a client whose mean is far below all others'."""
    unlike = {"separation": 0.9, "captured_ratio": 0.1}
    assert rule(False, 0.2, member_p=2.0 * MEMBER_P, **unlike).verdict == "suspicious"
    assert rule(False, 0.2, member_p=0.5 * MEMBER_P, **unlike).verdict == "contaminated"
    assert rule(False, 0.2, separation=0.96, captured_ratio=0.1).verdict == "contaminated"


def test_doubt_needs_a_ratio_near_a_members_and_no_clear_gap() -> None:
    ratio, apart = 0.4, {"separation": 1.0, "captured_ratio": 0.2}
    wide = (DOUBT_RATIO - ratio) / 2.0 + 0.01
    assert ratio < LONER_RATIO
    assert rule(False, ratio, wide, **apart).verdict == "suspicious"
    assert rule(False, ratio, wide - 0.02, **apart).verdict == "contaminated"
    assert rule(False, DOUBT_FLOOR - 0.01, 0.3, **apart).verdict == "contaminated"
    # every pair of members clearly above: no standard error excuses that
    assert rule(False, ratio, wide, clear=True, **apart).verdict == "contaminated"
    assert rule(True, DOUBT_RATIO - 0.02, 0.3, clear=True, separation=1.0).verdict == "suspicious"
    assert rule(True, DOUBT_RATIO + 0.02, 0.3, clear=True, separation=1.0).verdict == "benign"


@pytest.mark.parametrize("turned", [False, True])
def test_clear_compares_the_least_similar_pair_inside(turned: bool) -> None:
    """By two standard errors of the difference, over modules."""
    rng = np.random.default_rng(0)
    order = [3, 0, 2, 1] if turned else [0, 1, 2, 3]
    for gap, least, expected in ((0.2, 0.5, True), (0.02, 0.5, False), (0.2, 0.31, False)):
        table = np.full((8, 4, 4), 0.5)
        table[:, 0, 1] = table[:, 1, 0] = least
        table[:, 3, :3] = table[:, :3, 3] = 0.5 - gap
        error = np.tril(rng.normal(0.0, 0.05, table.shape), -1)
        table = (table + error + error.transpose(0, 2, 1))[:, order][:, :, order]
        place = [order.index(k) for k in range(4)]
        levels = PairLevels(torch.from_numpy(table))
        assert levels.clear(place[:3], [place[3]]) is expected
        assert levels.clear([*place[:3], place[3]], [place[3]]) is expected
    missing = np.full((8, 4, 4), np.nan)
    assert not PairLevels(torch.from_numpy(missing)).clear([0, 1, 2], [3])
    assert not PairLevels(torch.from_numpy(np.full((8, 2, 2), 0.5))).clear([0], [1])


# One vote for near copies


@pytest.mark.parametrize("order", [range(11), range(10, -1, -1)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_near_copies_share_one_vote(order: Sequence[int], scale: float) -> None:
    """Three of them and the client they are like: together they count as one."""
    deltas = aligned([0.25] * 8, shapes=((96, 64), (64, 96)) * 3, seed=3)
    g = torch.Generator().manual_seed(1)
    made = []
    for module in deltas:
        noise = [low_rank(*module.shape[1:], 8, g) for _ in range(3)]
        close = module[2] + 0.3 * torch.stack(noise)
        made.append(torch.cat([module, close / 1.09**0.5]))
    result = judged([scale * module[list(order)] for module in made], 24)
    got = dict(zip(order, result.verdicts, strict=True))
    cluster = [got[k] for k in (2, 8, 9, 10)]
    assert sum(v.influence for v in cluster) == pytest.approx(1.0)
    assert {v.influence for v in cluster} == {0.25}
    assert all(v.verdict == "suspicious" and found(v) == {"near_copy"} for v in cluster)
    rest = [got[k] for k in range(8) if k != 2]
    assert [(v.verdict, v.influence) for v in rest] == [("benign", 1.0)] * 7


@pytest.mark.parametrize(("size", "count"), [(1.0, 1), (1.0, 4), (2.0, 2), (4.0, 1), (4.0, 4)])
def test_the_votes_of_near_copies_never_add_up_to_more_than_one(size: float, count: int) -> None:
    deltas = aligned([0.25] * 9, shapes=((96, 64), (64, 96)) * 3, seed=6)
    g = torch.Generator().manual_seed(2)
    made = []
    for module in deltas:
        noise = [low_rank(*module.shape[1:], 8, g) for _ in range(count)]
        made.append(torch.cat([module, size * (module[4] + 0.3 * torch.stack(noise))]))
    result = judged(made, 24)
    cluster = [result.verdicts[k] for k in (4, *range(9, 9 + count))]
    norms = [1.0, *[size * 1.09**0.5] * count]
    assert 0.0 < sum(v.influence for v in cluster) <= 1.0 + 1e-12
    assert sum(v.influence * n for v, n in zip(cluster, norms, strict=True)) <= NORM_CAP
    assert [result.verdicts[k].influence for k in range(9) if k != 4] == [1.0] * 8


def test_typical_scores_are_benign() -> None:
    """The scores that all tests here start from."""
    plain = rule(True)
    assert (plain.verdict, plain.influence, plain.findings) == ("benign", 1.0, ())
    assert NORM_CAP < NORM_SUSPICIOUS
    off = decide(replace(scores(), odd_modules=(1,)), True, "", True, tuple("abcdef"))
    assert (off.verdict, off.influence, found(off)) == ("contaminated", 0.0, {"odd_module"})
