"""One common factor, loadings with their errors, the line and the power."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from clair_cli.maths.judge.factor import PRIOR, Loadings, loadings, one_factor
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.thresholds import ERROR_RATE, LINE


def pairs(own: list[float], noise: float = 0.0, seed: int = 0) -> Pairs:
    """Similarities of clients with these loadings, with errors of this deviation."""
    loads = torch.tensor(own, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    error = noise * torch.randn(len(own), len(own), generator=g, dtype=torch.float64).triu(1)
    known = 1.0 - torch.eye(len(own), dtype=torch.float64)
    value = (loads[:, None] * loads + error + error.mT) * known
    return Pairs(value, max(noise, 1e-6) ** 2 * known, known)


def everybody(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


def test_a_factor_is_found_whatever_the_loadings() -> None:
    own = [1.0, 0.5, 1.4, 0.9, 0.0, -0.7]
    found = one_factor(pairs(own), everybody(6))
    assert torch.allclose(found, torch.tensor(own, dtype=torch.float64), atol=1e-5)


def test_sets_of_clients_are_independent_of_one_another() -> None:
    table = pairs([1.0, 0.5, 1.4, 0.9, 1.1, 0.2], 0.1)
    masks = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1.0]], dtype=torch.float64)
    both = one_factor(table, masks)
    for mask, found in zip(masks, both, strict=True):
        assert torch.allclose(found, one_factor(table, mask), atol=1e-5)
        assert bool((found[mask == 0] == 0).all())


@pytest.mark.parametrize(
    "own", [[1.0, -1.0, 1.0, 1.0, -1.0], [1.0] * 7 + [-9.0], [-1.0] * 4 + [3.0]]
)
def test_opposite_clients_hide_no_factor(own: list[float]) -> None:
    """The sum of all similarities is zero or less; the majority has the positive sign."""
    n = len(own)
    assert float(pairs(own).value.sum()) <= 0.0
    sign = 1.0 if sum(x > 0 for x in own) > n / 2 else -1.0
    expected = sign * torch.tensor(own, dtype=torch.float64)
    assert torch.allclose(one_factor(pairs(own), everybody(n)), expected, atol=0.01)
    both = one_factor(pairs(own), torch.stack([everybody(n), everybody(n)]))
    assert torch.allclose(both, expected.expand(2, n), atol=0.01)


def test_a_pair_that_is_not_known_says_nothing() -> None:
    table = pairs([1.0, 0.8, 1.2, 1.0, 0.9])
    for one in (table.value, table.known, table.chance):
        one[0, 3] = one[3, 0] = 0.0
    found = one_factor(table, everybody(5))
    assert torch.allclose(found, torch.tensor([1.0, 0.8, 1.2, 1.0, 0.9]).double(), atol=1e-5)


def test_ratios_are_to_the_typical_member_and_leave_the_client_out() -> None:
    own = [2.0] * 7 + [1.0, 0.0, -2.0]
    held = loadings(pairs(own, 0.01), range(8))
    expected = torch.tensor([x / 2.0 for x in own], dtype=torch.float64)
    assert torch.allclose(held.ratio, expected, atol=0.02)
    assert held.level == pytest.approx(4.0, rel=0.02)
    # one client's own pairs do not move what it is held against
    table = pairs(own, 0.01)
    table.value[0] *= 1.5
    table.value[:, 0] *= 1.5
    assert float(loadings(table, range(8)).ratio[0]) == pytest.approx(1.5, abs=0.05)


@functools.cache
def nine_and(share: float, noise: float) -> list[Loadings]:
    """Of nine alike and one with this share of it, drawn 300 times."""
    own = [1.0] * 9 + [share]
    return [loadings(pairs(own, noise, seed), range(9)) for seed in range(300)]


def test_standard_errors_are_those_of_repeated_draws() -> None:
    drawn = nine_and(0.0, 0.3)
    ratios = torch.stack([held.ratio for held in drawn])
    stated = torch.stack([held.se for held in drawn]).mean(0)
    assert float(ratios[:, 9].std() / stated[9]) == pytest.approx(1.0, abs=0.2)
    assert float(ratios[:, :9].std(0).mean() / stated[:9].mean()) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(("share", "least", "most"), [(LINE, 0.0, 0.03), (0.0, 0.97, 1.0)])
def test_the_line_has_its_error_rate_and_power(share: float, least: float, most: float) -> None:
    below = 0
    for held in nine_and(share, 0.3):
        below += held.is_below(9)
        assert held.is_below(9) == (float(held.p_line[9]) < ERROR_RATE)
    assert least <= below / 300 <= most


@pytest.mark.parametrize("noise", [0.3, 0.5, 0.7])
def test_the_power_stated_is_the_frequency(noise: float) -> None:
    drawn = nine_and(0.0, noise)
    stated = sum(float(held.power[9]) for held in drawn) / 300
    found = sum(held.is_below(9) for held in drawn) / 300
    assert found == pytest.approx(stated, abs=0.08)


def test_clients_that_share_nothing_add_to_what_is_known_of_the_errors() -> None:
    table = pairs([1.0] * 3 + [0.0] * 2, 0.1)
    alone, more = loadings(table, range(3)), loadings(table, range(3), (3, 4))
    assert alone.degrees == PRIOR
    assert more.degrees == PRIOR + 4
    assert torch.allclose(alone.ratio, more.ratio)


def test_of_two_clients_each_is_held_against_the_other() -> None:
    held = loadings(pairs([2.0, 2.0, 0.0], 0.01), (0, 1))
    assert held.ratio[:2].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert held.is_below(2)


def test_no_loading_is_above_what_a_client_shares_with_itself() -> None:
    """One that has mixed three others, and is more like them than they are like each other."""
    known = 1.0 - torch.eye(7, dtype=torch.float64)
    value = 0.17 * known
    value[6, :3] = value[:3, 6] = 0.65
    members = torch.ones(7, dtype=torch.float64)
    free = one_factor(Pairs(value, 1e-4 * known, known), members)
    held = one_factor(Pairs(value, 1e-4 * known, known, torch.ones(7)), members)
    assert float(free[6]) > 1.05
    assert float(held[6]) <= 1.0
    least, most = float(held[3:6].min()), float(held[:3].max())
    assert least / most > float(free[3:6].min() / free[:3].max())


def test_one_with_far_more_is_not_what_the_others_are_measured_by() -> None:
    """The mean of nine clients has a multiple of what each of them has, and most of all squares."""
    held = loadings(pairs([0.4] * 9 + [1.4], 0.005), range(10))
    assert held.ratio[:9].tolist() == pytest.approx([1.0] * 9, abs=0.15)
    assert float(held.ratio[9]) > 3.0
