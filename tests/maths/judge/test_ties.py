"""One client that mixes others' updates into its own frames none of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge.judge import judge
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.thresholds import MINORITY_P, OWN_SHARE
from clair_cli.maths.judge.ties import answerable, find_tie, without
from tests.planted import aligned, codes, judge_deltas, words

N = 9  # honest clients; the last one more mixes
RANK = 32


def mixed(make: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> list[Tensor]:
    """Deltas of honest clients and one that makes its own from theirs, of norm one.

    Args:
        make: from the honest ones of a module, (n, out, in), and an honest one more.
    """
    deltas = []
    for module in aligned([0.2] * (N + 1), seed=seed):
        crafted = make(module[:N], module[N])
        deltas.append(torch.cat([module[:N], (crafted / crafted.norm())[None]]))
    return deltas


@pytest.mark.parametrize(
    ("share", "mean"), [(0.4, 0.0), (0.6, 0.0), (1.2, 0.0), (-0.8, 0.6), (-2.0, 1.5)]
)
def test_a_copy_mixed_in_costs_both_a_part_of_their_vote(share: float, mean: float) -> None:
    result = judge_deltas(
        mixed(lambda honest, own: share * honest[0] + own + mean * honest[1:].mean(0)), RANK
    )
    assert result.outcome == "judged", result.text
    expected = ["suspicious"] + ["benign"] * (N - 1) + ["suspicious"]
    assert words(result) == expected
    assert codes(result, 0) == codes(result, N)
    assert result.verdicts[0].influence + result.verdicts[N].influence <= 1.0 + 1e-9


def test_who_is_found_out_by_the_others_takes_no_vote_from_whom_it_copied() -> None:
    result = judge_deltas(mixed(lambda honest, own: own - honest[0]), RANK)
    assert words(result) == ["benign"] * N + ["contaminated"]


def test_who_mixes_several_answers_for_it_alone() -> None:
    result = judge_deltas(mixed(lambda honest, own: honest[0] + honest[1] + 1.5 * own), RANK)
    assert words(result) == ["benign"] * N + ["suspicious"]
    assert codes(result, N) == {"tied"}
    text = result.verdicts[N].findings[0].text
    assert text == "like or unlike c0, c1 as nobody else is; together they count as one client"
    assert result.verdicts[N].influence == pytest.approx(1 / 3, rel=0.01)


def test_the_mean_of_all_is_not_what_the_others_are_measured_by() -> None:
    result = judge_deltas(mixed(lambda honest, own: honest.mean(0)), RANK)
    assert result.outcome == "judged", result.text
    assert words(result)[:N] == ["benign"] * N


def test_what_one_client_sets_in_a_module_makes_nobody_odd_there() -> None:
    """In one of many modules, so that no tie shows."""
    n, modules = 8, 60
    g = torch.Generator().manual_seed(1)
    noise = 0.002 * torch.randn(modules, n, n, generator=g, dtype=torch.float64).triu(1)
    cosines = 0.1 + noise + noise.mT
    cosines.diagonal(dim1=1, dim2=2).fill_(1.0)
    sides = PairTable(torch.full_like(cosines, 0.1), torch.full_like(cosines, 0.1))
    norms = torch.ones(modules, n, dtype=torch.float64)
    for odd, expected in (([7], "benign"), ([1, 2, 3, 4, 5, 6, 7], "suspicious")):
        value = cosines.clone()
        value[5, 0, odd] = value[5, odd, 0] = -0.9 if len(odd) == 1 else -0.1
        if len(odd) == 1:  # who sets it is more like the others there, and not odd itself
            value[5, 1:7, 7] = value[5, 7, 1:7] = 0.245
        table = Evidence(norms, PairTable(value, torch.zeros_like(value)), sides, sides, 4 * norms)
        result = judge(table, [f"c{k}" for k in range(n)], [f"m{k}" for k in range(modules)])
        assert result.structure.groups[0].ties == ()
        assert words(result) == [expected] + ["benign"] * (n - 1)


def table(extra: float, n: int = 10) -> Pairs:
    """Pairs of level 1 with deviations of 0.1, one pair having `extra` more."""
    g = torch.Generator().manual_seed(3)
    value = 1.0 + 0.1 * torch.randn(n, n, generator=g, dtype=torch.float64)
    value = torch.triu(value, 1) + torch.triu(value, 1).mT
    value[1, 4] = value[4, 1] = 1.0 + extra
    known = 1.0 - torch.eye(n, dtype=torch.float64)
    return Pairs(value * known, 0.01 * known, known)


def found(pairs: Pairs, sign: int) -> tuple[int, int] | None:
    return find_tie(pairs, range(len(pairs.value)), sign)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_bar_of_a_tie(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MINORITY_P == 1e-4
    assert OWN_SHARE == 0.25
    assert found(table(sign * 0.8), sign) == (1, 4)
    assert found(table(sign * 0.8), -sign) is None
    assert found(table(sign * 0.3), sign) is None  # too likely
    monkeypatch.setattr("clair_cli.maths.judge.ties.OWN_SHARE", 0.9)
    assert found(table(sign * 0.8), sign) is None  # too little
    assert found(without(table(sign * 0.8), [(1, 4)]), sign) is None


def test_four_clients_are_too_few_for_a_tie() -> None:
    assert find_tie(table(5.0), [0, 1, 4, 5], 1) is None
    assert find_tie(table(5.0), [0, 1, 4, 5, 6], 1) == (1, 4)


def test_who_answers_for_ties() -> None:
    assert answerable([(0, 9)], range(10)) == {0: (9,), 9: (0,)}
    assert answerable([(0, 9), (1, 9)], range(10)) == {9: (0, 1)}
    assert answerable([(0, 9), (1, 9), (0, 1)], range(10)) == {0: (1, 9), 1: (0, 9), 9: (0, 1)}
    assert answerable([(0, 9)], range(9)) == {}  # 9 is found out otherwise
