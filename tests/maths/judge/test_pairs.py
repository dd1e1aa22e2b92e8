"""Similarities in units of chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence, collected, gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, stack_factors
from clair_cli.maths.judge.pairs import pairs_of, variances_by_chance


def evidence(clients: list[list[Factors]], shape: tuple[int, int]) -> Evidence:
    """Of modules of one shape, a list of clients each."""
    parts = [gather(grams(stack_factors([module], shape))) for module in clients]
    return collected((([m], part) for m, part in enumerate(parts)), len(parts))


def by_chance(found: Evidence) -> Tensor:
    """Of all modules, (n_modules, n_clients, n_clients)."""
    return torch.stack(list(variances_by_chance(found)))


def generic(n: int, seed: int, decay: float) -> list[Factors]:
    """Unrelated clients whose output and input directions come from a few generic ones."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    strong = torch.arange(1, 65, dtype=torch.float64) ** -decay
    basis = torch.linalg.qr(randn(64, 64))[0] * strong
    return [(randn(4, 64) @ basis.mT, basis @ randn(64, 4), 1.0) for _ in range(n)]


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_unrelated_clients_have_the_variance_that_is_said(decay: float) -> None:
    """Whatever directions all of them prefer."""
    found = evidence([generic(12, seed, decay) for seed in range(40)], (64, 64))
    others = ~torch.eye(12, dtype=torch.bool)
    cosines, variance = found.matrix.value[:, others], by_chance(found)[:, others]
    ratio = float(cosines.square().mean() / variance.mean())
    assert ratio == pytest.approx(1.0, abs=0.35)
    pairs = pairs_of(found)
    spread = float(pairs.value[others].square().mean() / pairs.chance[others].mean())
    assert spread == pytest.approx(1.0, abs=0.4)


def test_a_module_counts_by_what_it_can_tell() -> None:
    """One of few generic directions does not drown another."""
    wide = [generic(6, seed, 0.0) for seed in range(3)]
    narrow = [generic(6, seed, 2.0) for seed in range(3, 6)]
    found = evidence([*wide, *narrow], (64, 64))
    unit = by_chance(found)[:, ~torch.eye(6, dtype=torch.bool)].median(1).values.sqrt()
    assert float(unit[3:].min() / unit[:3].max()) > 3
    expected = (found.matrix.value / unit[:, None, None]).mean(0)
    expected.fill_diagonal_(0.0)
    assert torch.allclose(pairs_of(found).value, expected)


def test_nearly_equal_delta_weights_explain_their_sides() -> None:
    """What they share of a side they share because they share the whole."""
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(1, 64, generator=g), torch.randn(64, 1, generator=g)
    clients: list[Factors] = [
        (A + 0.1 * torch.randn(1, 64, generator=g), B + 0.1 * torch.randn(64, 1, generator=g), 1.0)
        for _ in range(4)
    ]
    found = evidence([clients], (64, 64))
    assert float(found.output.value.min()) > 0.9
    others = ~torch.eye(4, dtype=torch.bool)
    assert float(by_chance(found)[:, others].max()) < 0.01


def test_a_pair_with_few_modules_in_common_is_not_known() -> None:
    modules = [generic(5, seed, 0.5) for seed in range(8)]
    for m in range(8):
        if m >= 2:
            modules[m][0] = None
        if m < 2:
            modules[m][1] = None
        if m > 1:
            modules[m][2] = None if m > 2 else modules[m][2]
    found = evidence(modules, (64, 64))
    known = pairs_of(found).known
    assert known[0, 1] == 0  # none in common
    assert known[0, 2] == 1  # two of eight
    assert known[0, 3] == 1
    assert bool((known.diagonal() == 0).all())
    assert bool(torch.isfinite(pairs_of(found).value).all())


def test_only_the_clients_asked_for_give_the_units() -> None:
    found = evidence([generic(6, seed, 0.5) for seed in range(4)], (64, 64))
    few = pairs_of(found, clients=range(4))
    assert few.value.shape == (6, 6)
    index = torch.arange(4)
    alone = Evidence(
        found.norms[:, :4],
        *(
            type(t)(t.value[:, :4, :4], t.null[:, :4, :4])
            for t in (found.matrix, found.output, found.input)
        ),
        *((found.cores[:, :4],) if hasattr(found, "cores") else ()),
        found.effective_ranks[:, :4],
    )  # fmt: skip
    assert torch.allclose(few.of(index).value, pairs_of(alone).value)
