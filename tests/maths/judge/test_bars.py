"""A case just above and one just below thresholds that no other test has a pair of cases for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge import minority
from clair_cli.maths.judge.copies import near_copies
from clair_cli.maths.judge.factor import Loadings
from clair_cli.maths.judge.groups import Group
from clair_cli.maths.judge.structure import find_duplicates
from clair_cli.maths.judge.thresholds import (
    COPY_DISTANCE,
    DUPLICATE_COSINE,
    LINE,
    OWN_SHARE,
    POWER,
)
from tests.maths.judge.test_minority import evidence, members


def cosines(pair: float, others: float, n: int = 6, modules: int = 5) -> Tensor:
    """Of n clients, the first two of which are more alike, (n_modules, n, n)."""
    table = torch.full((modules, n, n), others, dtype=torch.float64)
    table[:, 0, 1] = table[:, 1, 0] = pair
    table.diagonal(dim1=1, dim2=2).fill_(1.0)
    return table


@pytest.mark.parametrize(("power", "sure"), [(1.001 * POWER, True), (0.999 * POWER, False)])
def test_a_round_is_judged_by_its_power(power: float, sure: bool) -> None:
    one = torch.ones(5, dtype=torch.float64)
    bar = Loadings(one, one, 20.0, 1.0).bar
    se = one * LINE / (float(ndtri(power)) + bar)
    held = Loadings(one, se, 20.0, 1.0)
    group = Group((0, 1, 2, 3, 4), (), held)
    assert group.power == pytest.approx(power)
    assert group.is_sure is sure


@pytest.mark.parametrize(("ratio", "below", "above"), [(0.445, True, False), (0.455, False, True)])
def test_the_line_is_at_a_fraction_of_the_typical_loading(
    ratio: float, below: bool, above: bool
) -> None:
    """Where it is known well; and where it is not, neither side is clear."""
    one = torch.ones(5, dtype=torch.float64)
    sure, unsure = (Loadings(ratio * one, se * one, 20.0, 1.0) for se in (0.001, 0.01))
    assert (sure.is_below(0), sure.is_above(0)) == (below, above)
    assert (unsure.is_below(0), unsure.is_above(0)) == (False, False)


@pytest.mark.parametrize(("over", "below"), [(1.001, True), (0.999, False)])
def test_a_client_is_below_the_line_from_so_many_errors_on(over: float, below: bool) -> None:
    one = torch.ones(5, dtype=torch.float64)
    bar = Loadings(one, one, 20.0, 1.0).bar
    assert Loadings((LINE - over * bar * 0.1) * one, 0.1 * one, 20.0, 1.0).is_below(0) is below


@pytest.mark.parametrize(("share", "copies"), [(0.98, {1: 0}), (1.02, {})])
def test_copies_are_nearer_than_a_share_of_what_is_expected(
    share: float, copies: dict[int, int]
) -> None:
    others = 0.2  # of all, and so expected of the two
    pair = 1.0 - share * COPY_DISTANCE * (1.0 - others)
    value = cosines(pair, others)
    levels = PairLevels(PairTable(value, torch.zeros_like(value)))
    assert near_copies(levels, range(6)) == copies


@pytest.mark.parametrize(("over", "same"), [(1e-5, {1: 0}), (-1e-5, {})])
def test_duplicates_have_nearly_one_direction(over: float, same: dict[int, int]) -> None:
    value = cosines(DUPLICATE_COSINE + over, 0.2)
    table = PairTable(value, torch.zeros_like(value))
    norms = torch.ones(value.shape[:2], dtype=torch.float64)
    assert find_duplicates(Evidence(norms, table, table, table, 4 * norms), range(6)) == same


def results(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[tuple[int, ...], float]:
    """What a method of the search returns, when first asked, about each set beside nine others."""
    method, found = getattr(minority.Search, name), dict[tuple[int, ...], float]()

    def call(search: Any, excess: Tensor, outside: Tensor, of: Sequence[int]) -> float:
        value: float = method(search, excess, outside, of)
        if int(outside.sum()) == 9:
            found.setdefault(tuple(of), value)
        return value

    monkeypatch.setattr(minority.Search, name, call)
    return found


def test_what_is_left_without_one_member_is_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    table, group = evidence(dict.fromkeys((2, 5, 8), (0, 1.0)), 12), (2, 5, 8)
    chances = results(monkeypatch, "_chance")
    assert members(table, 12) == [group]
    largest = max(chances[pair] for pair in ((2, 5), (2, 8), (5, 8)))
    for bar, is_one in ((largest * 0.99, False), (largest * 1.01, True)):
        monkeypatch.setattr(minority, "LEFT_P", bar)
        assert (group in members(table, 12)) is is_one


def test_a_minority_has_a_share_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    table, group = evidence(dict.fromkeys((2, 5, 8), (0, 0.8)), 12), (2, 5, 8)
    own = results(monkeypatch, "_own")
    assert members(table, 12) == [group]
    assert own[group] >= OWN_SHARE
    for bar, is_one in ((own[group] * 1.01, False), (own[group] * 0.99, True)):
        monkeypatch.setattr(minority, "OWN_SHARE", bar)
        assert (group in members(table, 12)) is is_one
