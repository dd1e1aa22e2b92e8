"""Groups: who is compared with whom, and who is named together."""

from __future__ import annotations

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

from clair_cli.maths.judge.groups import find_groups
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.thresholds import ERROR_RATE

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
