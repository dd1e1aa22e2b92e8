"""What norms a round allows, and what a client of another size counts."""

from __future__ import annotations

import math

import pytest
import torch

from clair_cli.maths.judge.sizes import Sizes, allowed, sizes_of_norms
from clair_cli.maths.judge.thresholds import MODULE_NORM_CAP, NORM_CAP


def log_normal(count: int, spread: float, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(count, generator=g, dtype=torch.float64)).exp()


@pytest.mark.parametrize("spread", [0.3, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_many_modules_have_no_larger_norms_than_allowed(spread: float, seed: int) -> None:
    """768 modules of experts, six clients."""
    ratios = log_normal(768 * 6, spread, seed)
    assert float(ratios.max()) > MODULE_NORM_CAP
    assert float(ratios.max()) < allowed(ratios, MODULE_NORM_CAP)


@pytest.mark.parametrize("spread", [0.3, 0.4])
@pytest.mark.parametrize("n_clients", [5, 8, 16])
def test_no_honest_client_of_many_modules_is_cut(n_clients: int, spread: float) -> None:
    """Beside the median of so few clients, one of which it is in every module."""
    cut = 0
    for seed in range(20):
        sizes = sizes_of_norms(
            log_normal(768 * n_clients, spread, seed).view(768, -1), range(n_clients)
        )
        cut += any(sizes.factor(k, sizes.whole_cap, sizes.module_cap) < 1 for k in range(n_clients))
    assert cut <= 1


def test_clients_of_one_norm_allow_no_other() -> None:
    """As where all are clipped to it: one that is not must not set the bound."""
    norms = torch.ones(6, 5, dtype=torch.float64)
    norms[:, 4] = 100.0
    sizes = sizes_of_norms(norms, range(5))
    assert (sizes.whole_cap, sizes.module_cap) == (NORM_CAP, MODULE_NORM_CAP)


def test_equal_clients_allow_the_least() -> None:
    assert allowed(torch.ones(10), NORM_CAP) == NORM_CAP
    assert allowed(torch.zeros(3), NORM_CAP) == NORM_CAP
    assert allowed(log_normal(10, 0.05, 0), NORM_CAP) == NORM_CAP


def test_three_times_the_learning_rate_is_within_a_round_of_mixed_ones() -> None:
    mixed = torch.tensor([1.0, 1.1, 0.95, 1.0, 3.1, 2.9, 0.35, 0.4, 0.38, 0.41, 1.3, 1.25])
    assert allowed(mixed, NORM_CAP) > 3.1


@pytest.mark.parametrize("size", [10.0, 1e6])
def test_fewer_than_half_move_it_little(size: float) -> None:
    honest = log_normal(6, 0.1, 1)
    ratios = torch.cat([honest, torch.full((4,), size, dtype=torch.float64)])
    assert allowed(ratios, NORM_CAP) < 2.5


@pytest.mark.parametrize(("whole", "module", "over"), [(1.5, 1.0, 1.0), (1.0, 4.0, 2.0)])
def test_over_is_in_logs_of_the_cap(whole: float, module: float, over: float) -> None:
    sizes = Sizes(torch.tensor([whole]).double(), torch.tensor([module]).double(), 1.5, 2.0)
    assert sizes.over(0) == pytest.approx(over)
    counted = sizes.factor(0, sizes.whole_cap, sizes.module_cap)
    assert counted == pytest.approx(min(1.0, 1.5 / whole, 2.0 / module))


def test_a_norm_that_is_no_number_is_over_everything() -> None:
    nothing = torch.tensor([math.nan]).double()
    assert Sizes(nothing, nothing, 1.5, 2.0).over(0) == math.inf
