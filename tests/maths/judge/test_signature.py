"""Signatures: profiles over modules and concentration, and how odd one is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clair_cli.maths.judge.signature import Signatures, above, fisher, stouffer

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


def test_stouffer_of_one_is_itself_and_signs_that_contradict_cancel_out() -> None:
    assert stouffer([0.03]) == pytest.approx(0.03)
    assert stouffer([0.01, 0.99]) == pytest.approx(0.5)
    assert stouffer([0.03, 0.03]) < 0.03


def test_an_honest_client_with_data_of_its_own_is_not_odd() -> None:
    """It shares less, and uses more directions; one with wrong labels uses fewer."""
    loading = 1.0 + 0.05 * torch.linspace(-1, 1, N, dtype=torch.float64)
    loading[-1] = 0.55
    own, wrong = (signatures(more=more).odd(N - 1, loading) for more in (-0.3, 0.3))
    assert own > 0.1
    assert wrong < 1e-4


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


def test_what_a_client_shares_counts_once() -> None:
    """A loading that is low makes what is shared beside the common direction no odder: an honest
    client with words of its own has less of both."""
    g = torch.Generator().manual_seed(4)
    value = 1.0 + 0.2 * torch.randn(N, N, generator=g, dtype=torch.float64).triu(1)
    beside = value + value.mT - 1.0
    beside[-1], beside[:, -1] = 0.2, 0.2
    beside.fill_diagonal_(float("nan"))
    found = replace(signatures(), beside=beside, noise=0.01)
    loading = 1.0 + 0.05 * torch.linspace(-1, 1, N, dtype=torch.float64)
    loading[-1] = 1.0
    usual = found.odd(N - 1, loading)
    loading[-1] = 0.5
    assert found.odd(N - 1, loading) == pytest.approx(usual)
    assert usual < replace(found, beside=None).odd(N - 1, loading)  # and the clearer one counts


def of_ranks(found: Signatures, ranks: list[int]) -> Signatures:
    """The same clients with these numbers of components."""
    rank = torch.tensor(ranks)
    whole = Signatures(found.profile, found.concentration, rank[:, None] == rank[None, :])
    return whole.of(torch.arange(len(ranks)))


def test_who_is_the_only_one_of_its_rank_is_not_compared() -> None:
    odd, loading = signatures(shift=0.4, more=0.4), torch.ones(N, dtype=torch.float64)
    mixed = of_ranks(odd, [8] * (N - 1) + [4])
    assert mixed.told.tolist() == [True] * (N - 1) + [False]
    assert mixed.odd(N - 1, loading) == 1.0
    others = of_ranks(odd, [4] + [8] * (N - 1))  # nor does it keep the others from being compared
    assert others.odd(N - 1, loading) < 1e-4


@pytest.mark.parametrize(("count", "told"), [(5, False), (6, True)])
def test_six_of_a_rank_are_a_bank(count: int, told: bool) -> None:
    mixed = of_ranks(signatures(), [8] * (N - count) + [16] * count)
    assert mixed.told.tolist()[-1] is told


def test_what_a_rank_brings_with_it_is_not_odd() -> None:
    """Clients of more components use more directions, all of them."""
    both = [signatures(seed=1), signatures(shift=0.4, more=0.4, seed=2)]
    profile = torch.cat([both[0].profile, both[1].profile + 0.3], dim=1)
    profile[0, N:] += 0.5
    concentration = torch.cat([both[0].concentration, both[1].concentration - 0.5])
    whole = Signatures(profile, concentration, torch.ones(2 * N, 2 * N, dtype=torch.bool))
    mixed = of_ranks(whole, [8] * N + [16] * N)
    loading = 1.0 + 0.05 * torch.linspace(-1, 1, 2 * N, dtype=torch.float64)
    assert mixed.odd(2 * N - 1, loading) < 1e-4
    assert min(mixed.odd(k, loading) for k in range(2 * N - 1)) > 0.01
    assert whole.odd(2 * N - 1, loading) > 0.01  # among all of them it does not show


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
