"""The rule from scores to verdicts, and how much each client counts: caps for the large, a part for
the doubtful, one vote for copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.scores import Scores
from clair_cli.maths.judge.sizes import Sizes
from clair_cli.maths.judge.thresholds import LEFT_P, LINE, MODULE_NORM_CAP, NORM_CAP
from clair_cli.maths.judge.verdicts import LEAST_P, LIKELY, Verdict, decide
from tests.planted import aligned, judge_deltas, low_rank

MODULES = ("a", "b", "c", "d", "e", "f")


def rule(
    *, apart: str = "", norm: float = 1.0, module: float = 1.0, modules: Sequence[int] = (),
    spread: float = 1.0,
    **given: Any,
) -> Verdict:  # fmt: skip
    """The verdict on a typical member, but for what is given."""
    sizes = Sizes(
        torch.tensor([norm], dtype=torch.float64),
        torch.tensor([module], dtype=torch.float64),
        NORM_CAP,
        MODULE_NORM_CAP,
    )
    typical: dict[str, Any] = {
        "loading": 1.0, "loading_se": 0.1, "is_below": False, "is_opposite": False,
        "is_shown": True, "is_less": False, "p_line": 1.0, "has_below": False, "p_odd": 1.0,
        "power": 0.999, "over": sizes.over(0),
        "values": {"norm": norm, "norm_ratio": norm, "module_norm_ratio": module,
                   "effective_rank_ratio": spread},
        "odd_modules": tuple(modules), "module_similarity": torch.full((6,), 0.3),
        "module_chance": torch.full((6,), 0.1),
    }  # fmt: skip
    return decide(Scores(**{**typical, **given}), sizes, 0, apart, MODULES)


def found(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def judged(deltas: Sequence[Tensor], rank: int = 8) -> Judgement:
    result = judge_deltas(deltas, rank)
    assert result.outcome == "judged", result.text
    return result


def influences(result: Judgement) -> list[float]:
    return [verdict.influence for verdict in result.verdicts]


def test_a_typical_member_is_benign() -> None:
    plain = rule()
    assert (plain.verdict, plain.influence, plain.findings) == ("benign", 1.0, ())
    assert (plain.p_honest, plain.confidence) == (1.0, "clear")


# What a client shares


@pytest.mark.parametrize(
    ("given_scores", "apart", "verdict", "code"),
    [
        ({"is_below": True}, "", "contaminated", "unlike_the_others"),
        ({"is_below": True}, "x", "contaminated", "in_a_group"),
        ({"is_below": True, "is_opposite": True}, "", "contaminated", "opposite"),
        ({}, "x", "minority", "minority"),
        ({"is_shown": False}, "", "suspicious", "weakly_alike"),
        ({"p_line": 0.99 * LIKELY}, "", "suspicious", "less_alike"),
        ({"p_line": 1.01 * LIKELY}, "", "benign", ""),
        ({"loading": 0.99 * LINE, "has_below": True}, "", "suspicious", "less_alike"),
        ({"loading": 0.99 * LINE}, "", "benign", ""),
        ({"loading": 1.01 * LINE, "has_below": True}, "", "benign", ""),
        ({"p_odd": 0.99 * LEFT_P}, "", "suspicious", "odd_signature"),
        ({"p_odd": 1.01 * LEFT_P}, "", "benign", ""),
        ({"modules": (1, 4)}, "", "suspicious", "odd_module"),
        ({"spread": 1.99, "is_less": True}, "", "benign", ""),
        ({"spread": 2.01, "is_less": True}, "", "contaminated", "noise"),
        ({"spread": 2.01}, "", "suspicious", "noise"),
    ],
)
def test_the_rule(given_scores: dict[str, Any], apart: str, verdict: str, code: str) -> None:
    got = rule(apart=apart, **given_scores)
    assert (got.verdict, found(got)) == (verdict, {code} if code else set())
    counted = {"contaminated": 0.0, "minority": 1.0, "suspicious": LINE, "benign": 1.0}
    if (verdict, code) == ("suspicious", "noise"):
        counted["suspicious"] = 1.0
    assert got.influence == pytest.approx(counted[verdict])


def test_modules_and_companions_are_named() -> None:
    assert "in b, e" in rule(modules=(1, 4)).findings[0].text
    assert "x, y" in rule(apart="x, y").findings[0].text


@pytest.mark.parametrize(
    ("p", "sure"), [(0.0005, "clear"), (0.0011, "likely"), (0.049, "likely"), (0.051, "open")]
)
def test_how_sure_a_finding_is(p: float, sure: str) -> None:
    below = rule(is_below=True, p_line=p)
    assert (below.confidence, below.p_honest) == (sure, max(p, LEAST_P))


@pytest.mark.parametrize(
    ("power", "p", "sure"),
    [(0.991, 1.0, "clear"), (0.989, 1.0, "likely"), (0.901, 0.06, "likely"),
     (0.899, 1.0, "open"), (0.999, 0.04, "open")],
)  # fmt: skip
def test_how_sure_a_benign_client_is(power: float, p: float, sure: str) -> None:
    benign = rule(power=power, p_odd=p)
    assert (benign.verdict, benign.confidence) == ("benign", sure)


def test_numbers_are_never_minus_zero() -> None:
    for loading in (-0.004, 0.0, 0.004):
        text = rule(is_below=True, loading=loading).findings[0].text
        assert "0.00" in text and "-0.00" not in text
    assert "nan" not in rule(is_below=True, loading=math.nan).findings[0].text


# Sizes


@pytest.mark.parametrize("size", [0.5, 1.0, 1.45, 1.6, 2.0, 3.3])
def test_a_benign_client_counts_as_at_most_the_cap(size: float) -> None:
    verdict = rule(norm=size)
    assert verdict.verdict == "benign"
    assert verdict.influence == pytest.approx(min(1.0, NORM_CAP / size))
    assert found(verdict) == ({"large"} if size > NORM_CAP else set())


@pytest.mark.parametrize("size", [2.0, 2.6, 7.9])
def test_so_does_one_large_in_a_module(size: float) -> None:
    verdict = rule(module=size)
    assert verdict.verdict == "benign"
    assert verdict.influence == pytest.approx(min(1.0, MODULE_NORM_CAP / size))
    both = rule(norm=2.0, module=size)
    assert both.influence == pytest.approx(min(NORM_CAP / 2.0, MODULE_NORM_CAP / size))


@pytest.mark.parametrize(
    ("sizes", "verdict", "code"),
    [
        ({"norm": 0.99 * NORM_CAP**3}, "benign", "large"),
        ({"norm": 1.01 * NORM_CAP**3}, "suspicious", "norm"),
        ({"norm": 0.99 * NORM_CAP**4}, "suspicious", "norm"),
        ({"norm": 1.01 * NORM_CAP**4}, "contaminated", "norm"),
        ({"module": 0.99 * MODULE_NORM_CAP**3}, "benign", "large"),
        ({"module": 1.01 * MODULE_NORM_CAP**3}, "suspicious", "module_norm"),
        ({"module": 1.01 * MODULE_NORM_CAP**4}, "contaminated", "module_norm"),
        ({"norm": math.nan, "module": math.nan}, "contaminated", "norm"),
    ],
)
def test_sizes_out_of_proportion(sizes: dict[str, float], verdict: str, code: str) -> None:
    got = rule(**sizes)
    assert (got.verdict, found(got)) == (verdict, {code})
    assert (got.influence == 0.0) == (verdict == "contaminated")
    if code == "norm" and verdict == "suspicious":
        assert got.influence * sizes["norm"] == pytest.approx(1.0)  # as at most a typical one


def test_small_delta_weights_are_not_enlarged() -> None:
    assert rule(norm=0.01).influence == 1.0
    vanishing = rule(norm=1e-4)
    assert (vanishing.verdict, vanishing.influence) == ("suspicious", 0.0)
    assert found(vanishing) == {"no_update"}


@settings(max_examples=200, deadline=None)
@given(
    st.booleans(), st.booleans(), st.sampled_from(["", "x"]), st.floats(0.0, 1.0),
    st.floats(1e-4, 8.0), st.floats(1e-4, 40.0),
)  # fmt: skip
def test_nobody_counts_more_than_the_cap(
    below: bool, shown: bool, apart: str, p_odd: float, norm: float, module: float
) -> None:
    verdict = rule(
        is_below=below, is_shown=shown, apart=apart, p_odd=p_odd, norm=norm, module=module
    )
    assert 0.0 <= verdict.influence <= 1.0
    assert (verdict.influence == 0.0) == (verdict.verdict == "contaminated" or norm < 1e-3)
    assert verdict.influence * norm <= NORM_CAP + 1e-9
    assert verdict.influence * module <= MODULE_NORM_CAP + 1e-9
    if verdict.verdict == "suspicious":
        assert verdict.influence * norm <= 1.0 + 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize("seed", range(2))
def test_in_a_clean_cohort_all_count_exactly_the_same(scale: float, seed: int) -> None:
    deltas = [scale * module for module in aligned([0.3] * 9, seed=seed + 4)]
    assert influences(judged(deltas)) == [1.0] * 9


@pytest.mark.parametrize("order", [range(9), range(8, -1, -1), (3, 8, 0, 5, 1, 7, 2, 6, 4)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_caps_move_with_their_clients(order: Sequence[int], scale: float) -> None:
    """Client 7 is 1.7 times as large, client 8 four times."""
    deltas = aligned([0.3] * 9, seed=4)
    for module in deltas:
        module[7] *= 1.7
        module[8] *= 4.0
    result = judged([scale * module[list(order)] for module in deltas])
    got = dict(zip(order, result.verdicts, strict=True))
    assert [got[k].influence for k in range(7)] == [1.0] * 7
    assert (got[7].verdict, found(got[7])) == ("benign", {"large"})
    assert got[7].influence == pytest.approx(NORM_CAP / 1.7, rel=0.01)
    assert (got[8].verdict, found(got[8])) == ("suspicious", {"norm"})
    assert got[8].influence == pytest.approx(1.0 / 4.0, rel=0.01)


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
