"""Signatures: profiles over modules and concentration, and how odd one is."""

from __future__ import annotations

import pytest
import torch

from clair_cli.maths.judge.signature import Signatures, above, fisher

MODULES, N = 16, 10


def signatures(*, shift: float = 0.0, more: float = 0.0, seed: int = 0) -> Signatures:
    """Clients of one kind, but for the last one's profile and concentration."""
    g = torch.Generator().manual_seed(seed)
    profile = 0.08 * torch.randn(MODULES, N, generator=g, dtype=torch.float64)
    profile[:, -1] += shift * torch.linspace(-1, 1, MODULES, dtype=torch.float64)
    concentration = 0.06 * torch.randn(N, generator=g, dtype=torch.float64)
    concentration[-1] += more
    return Signatures(profile, concentration, torch.ones(N, N, dtype=torch.bool))


def test_fisher_of_one_is_itself() -> None:
    assert fisher([0.03]) == pytest.approx(0.03)
    assert fisher([0.03, 1.0]) > 0.03
    assert fisher([0.03, 0.03]) < 0.03


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_above_is_uniform_for_clients_of_one_kind(least: float) -> None:
    g = torch.Generator().manual_seed(1)
    group = torch.arange(N) < 2
    found = torch.tensor([
        above(0.06 * torch.randn(N, generator=g, dtype=torch.float64), group, ~group, least)
        for _ in range(600)
    ])  # fmt: skip
    for p in (0.05, 0.5):
        assert float((found < p).double().mean()) == pytest.approx(p, abs=0.05)


def test_an_odd_client_is_odd_in_all_of_its_signature() -> None:
    loading = torch.ones(N, dtype=torch.float64)
    loading[:-1] += 0.05 * torch.linspace(-1, 1, N - 1, dtype=torch.float64)
    plain = signatures().odd(N - 1, loading)
    loading[-1] = 1.6
    odd = signatures(shift=0.4, more=0.4)
    assert plain > 0.01
    assert odd.odd(N - 1, loading) < 1e-4
    assert odd.odd(0, loading) > 0.1
    less = signatures(shift=0.4, more=-0.4).odd(N - 1, loading)  # less concentrated is no sign
    assert less > 1e3 * odd.odd(N - 1, loading)


def test_ranks_are_not_compared_with_one_another() -> None:
    odd, loading = signatures(shift=0.4, more=0.4), torch.ones(N, dtype=torch.float64)
    alike = torch.ones(N, N, dtype=torch.bool)
    alike[-1, :-1] = alike[:-1, -1] = False
    mixed = Signatures(odd.profile, odd.concentration, alike)
    assert not mixed.comparable
    assert mixed.odd(N - 1, loading) == 1.0


@pytest.mark.parametrize(("modules", "told"), [(3, False), (4, True)])
def test_it_takes_four_modules(modules: int, told: bool) -> None:
    whole = signatures(shift=0.4, more=0.5)
    few = Signatures(whole.profile[:modules], whole.concentration, whole.alike)
    loading = torch.ones(N, dtype=torch.float64)
    assert (few.odd(N - 1, loading) < 1.0) == told


@pytest.mark.parametrize(("count", "told"), [(5, False), (6, True)])
def test_it_takes_six_clients(count: int, told: bool) -> None:
    some = signatures(shift=0.4, more=0.5).of(torch.arange(N - count, N))
    loading = torch.ones(count, dtype=torch.float64)
    assert (some.odd(count - 1, loading) < 1.0) == told
