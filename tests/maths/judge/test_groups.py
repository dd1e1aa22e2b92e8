"""Groups: who is compared with whom, and who is named together."""

from __future__ import annotations

import pytest
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from clair_cli.maths.judge.factor import Loadings, loadings
from clair_cli.maths.judge.groups import Group, find_groups
from clair_cli.maths.judge.minority import Minority
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.structure import Structure
from clair_cli.maths.judge.thresholds import ERROR_RATE, LINE, MINORITY_P

HONEST, STRANGERS, CHANCE = 8, 4, 0.05


def known(n: int) -> Tensor:
    return 1.0 - torch.eye(n, dtype=torch.float64)


def no_signatures(n: int) -> Signatures:
    """Of clients with too few modules for any."""
    none = torch.zeros(0, n, dtype=torch.float64)
    return Signatures(none, none.new_zeros(n), torch.ones(n, n, dtype=torch.bool))


def overlapping(strangers: int, seed: int) -> Pairs:
    """Honest clients that share more and less with one another, three of them most, and some that
    share nothing with anybody."""
    n, g = HONEST + strangers, torch.Generator().manual_seed(seed)
    honest = torch.randn(HONEST, HONEST, generator=g, dtype=torch.float64).triu(1)
    error = torch.randn(n, n, generator=g, dtype=torch.float64).triu(1)
    value = CHANCE * (error + error.mT)
    value[:HONEST, :HONEST] = 1.0 + 0.15 * (honest + honest.mT)
    value[:3, :3] += 0.4
    return Pairs(value * known(n), CHANCE**2 * known(n), known(n))


@pytest.mark.parametrize("strangers", [0, STRANGERS])
def test_who_shares_nothing_makes_nobody_stand_out(strangers: int) -> None:
    """Pairs of strangers differ by chance only: beside them what honest clients have more or less
    in common looked like a minority, or like a tie."""
    n, whole = HONEST + strangers, 0
    for seed in range(20):
        found = find_groups(overlapping(strangers, seed), no_signatures(n), range(n))
        whole += found[0].members == tuple(range(HONEST)) and not found[0].ties
    assert whole >= 18


@pytest.mark.parametrize(("over", "apart"), [(1.01, True), (0.99, False)])
def test_who_is_in_no_group_is_linked_by_what_chance_does_not_explain(
    over: float, apart: bool
) -> None:
    value = torch.zeros(9, 9, dtype=torch.float64)
    value[:6, :6] = 1.0
    bar = -float(ndtri(ERROR_RATE / 3)) * 0.1  # three clients are left: three pairs
    value[6, 7] = value[7, 6] = over * bar
    found = find_groups(Pairs(value * known(9), 0.01 * known(9), known(9)), None, range(9))
    assert [g.members for g in found] == [tuple(range(6))] + [(6, 7)] * apart


def anchored(ratio: float, p_one: float, *, trusted: bool = True) -> Group:
    """A group without power, of whose members one has this loading over its standard error."""
    one = torch.ones(4, dtype=torch.float64)
    bar = Loadings(one, one, 20.0, 1.0).bar
    se = one * LINE / bar  # an unrelated client would be noticed with probability 0.5
    ratios = torch.tensor([1.0, 1.0, 1.0, ratio * bar * float(se[0])], dtype=torch.float64)
    held = Loadings(ratios, se, 20.0, 1.0, p_one)
    return Group((0, 1, 2, 3), (), held, has_trusted=trusted)


def test_a_trusted_client_judges_where_every_member_clearly_shares() -> None:
    assert anchored(1.01, 1.01 * ERROR_RATE).is_sure
    assert not anchored(0.99, 1.01 * ERROR_RATE).is_sure
    assert not anchored(1.01, 0.99 * ERROR_RATE).is_sure
    assert not anchored(1.01, 1.01 * ERROR_RATE, trusted=False).is_sure
    assert anchored(1.01, 0.5).power == pytest.approx(0.5)


@pytest.mark.parametrize("more", [0.0, 1.0])
def test_more_than_one_thing_in_common_is_told_by_chance(more: float) -> None:
    """Errors by chance alone are no sign; two halves with something of their own are one."""
    tails = []
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        error = torch.randn(6, 6, generator=g, dtype=torch.float64).triu(1)
        value = 1.0 + 0.2 * (error + error.mT)
        value[:3, :3] += more
        value[3:, 3:] += more
        held = loadings(Pairs(value * known(6), 0.04 * known(6), known(6)), range(6))
        tails.append(held.p_one)
    low = sum(p < 0.1 for p in tails)
    assert low == 40 if more else low <= 10


def test_the_minority_of_another_group_is_apart_too() -> None:
    """In a round with a trusted client the largest group may be another one."""
    one = torch.ones(9, dtype=torch.float64)
    held = Loadings(one, 0.01 * one, 20.0, 1.0)  # nobody lacks what the cohort shares
    cohort = Group((0, 1, 2), (), held, has_trusted=True)
    other = Group((3, 4, 5, 6), (Minority((7, 8), 1e-5),), held)
    found = Structure({}, (), {}, tuple(range(9)), "matrix", None, (cohort, other))
    assert found.others == ((3, 4, 5, 6), (7, 8))
    assert found.singletons == ()


@pytest.mark.parametrize(
    ("excess", "p_one", "is_uneven"),
    [(1.01, 0.009, True), (0.99, 0.009, False), (1.01, 0.011, False)],
)
def test_a_group_is_uneven_if_a_pair_twice_as_alike_would_pass(
    excess: float, p_one: float, is_uneven: bool
) -> None:
    """Of eight members, with whom two more clients make 45 pairs; and only where one thing in
    common does not explain how alike they are."""
    spread = excess / float(stdtrit(30.0, 1 - MINORITY_P / 45))
    one = torch.ones(8, dtype=torch.float64)
    group = Group(tuple(range(8)), (), Loadings(one, 0.1 * one, 30.0, 1.0, p_one, spread))
    assert group.pair_excess == pytest.approx(excess)
    assert group.is_uneven == is_uneven


def test_the_spread_of_a_group_is_that_of_its_pairs() -> None:
    """Over what two typical members share; with what chance does as the prior."""
    n, g = 40, torch.Generator().manual_seed(3)
    error = torch.randn(n, n, generator=g, dtype=torch.float64).triu(1)
    value = 2.0 + 0.6 * (error + error.mT)
    found = loadings(Pairs(value * known(n), 0.01 * known(n), known(n)), range(n))
    assert found.spread == pytest.approx(0.3, rel=0.05)
    assert found.p_one < 1e-9
