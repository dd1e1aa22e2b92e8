"""Sizes of delta weights and of their components, against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.overcomplete import overcomplete_evidence
from clair_cli.maths.evidence.own_sizes import (
    CANCELLING_BELOW,
    OwnSizes,
    concatenate_sizes,
    own_sizes,
    size_alone,
)
from clair_cli.maths.factors.common_components import differences_to_last
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, FactorStack, stack_factors

OUT, IN = 20, 14
RANKS = (3, 0, 5, 2)


def factors(rank: int, seed: int) -> Factors:
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, IN, generator=g), torch.randn(OUT, rank, generator=g)
    return (A, B, -1.5) if rank else None


def dense_sizes(given: Factors) -> tuple[float, float]:
    if given is None:
        return 0.0, 0.0
    A, B = given[0].double(), given[1].double()
    each = [float(torch.linalg.matrix_norm(torch.outer(b, a))) for b, a in zip(B.T, A, strict=True)]
    return abs(given[2]) * float((B @ A).norm()), abs(given[2]) * torch.tensor(each).norm().item()


def stack(*, previous: bool) -> tuple[FactorStack, list[Factors], Factors]:
    clients, before = [factors(rank, k) for k, rank in enumerate(RANKS)], factors(4, 9)
    if not previous:
        return stack_factors([clients], (OUT, IN)), clients, None
    whole = stack_factors([[*clients, before]], (OUT, IN))
    return differences_to_last(whole, torch.tensor([[rank > 0 for rank in RANKS]])), clients, before


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("overcomplete", [False, True])
def test_sizes_are_those_of_the_clients_own_delta_weights(
    previous: bool, overcomplete: bool
) -> None:
    given, clients, before = stack(previous=previous)
    common = 4 if previous else 0
    found = overcomplete_evidence(given).sizes if overcomplete else own_sizes(grams(given), common)
    for k, client in enumerate(clients):
        norm, components = dense_sizes(client)
        assert float(found.norms[0, k]) == pytest.approx(norm, rel=1e-12)
        assert float(found.components[0, k]) == pytest.approx(components, rel=1e-6)
    norm, components = dense_sizes(before)
    assert float(found.previous_norms[0]) == pytest.approx(norm, rel=1e-12)
    assert float(found.previous_components[0]) == pytest.approx(components, rel=1e-6)


def test_one_alone() -> None:
    given = factors(5, 1)
    assert given is not None
    assert size_alone(*given) == pytest.approx(dense_sizes(given), rel=1e-6)


def sizes(share: float, previous_share: float = 1.0) -> OwnSizes:
    """Of one module and two clients, the second with that share of its components' size."""
    ones = torch.ones(1, 2, dtype=torch.float64)
    norms = torch.tensor([[1.0, share]], dtype=torch.float64)
    return OwnSizes(norms, ones, torch.tensor([previous_share]), torch.ones(1))


def test_what_cancels_beyond_the_bound_is_named() -> None:
    assert sizes(1.01 * CANCELLING_BELOW).cancelling() == []
    assert sizes(0.99 * CANCELLING_BELOW).cancelling() == [(0, 1)]
    assert sizes(1.0, 0.99 * CANCELLING_BELOW).cancelling() == [(0, -1)]
    assert sizes(0.5e-4).share(0, 1) == pytest.approx(0.5e-4)
    assert sizes(1.0, 0.25).share(0, -1) == pytest.approx(0.25)


def test_float32_products_see_less() -> None:
    assert sizes(1.9e-3).cancelling(torch.float32) == [(0, 1)]
    assert sizes(2.1e-3).cancelling(torch.float32) == []


def test_nothing_cancels_where_there_is_nothing() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    found = OwnSizes(nothing, nothing, torch.zeros(1), torch.zeros(1))
    assert found.cancelling() == []
    assert found.most(0, (8, 8)) == [0.0, 0.0]


def test_batches_are_put_in_order() -> None:
    joined = concatenate_sizes([sizes(0.5), sizes(0.25)], [1, 0])
    assert joined.norms[:, 1].tolist() == [0.25, 0.5]
    assert len(joined.previous_norms) == 2


def cancelling(share: float) -> tuple[Tensor, Tensor]:
    """Factors of a delta weight of norm one whose components have 1 / share of it."""
    g = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(n, generator=g, dtype=torch.float64) for n in (IN, OUT, OUT))
    a, b, c = a / a.norm(), b / b.norm(), c / c.norm()
    size = 0.5**0.5 / share
    return torch.stack([a, a]), torch.stack([size * c, b - size * c], dim=1)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1.1e-4])
def test_the_largest_norm_holds_whatever_cancels(share: float) -> None:
    A, B = cancelling(share)
    found = own_sizes(grams(stack_factors([[(A, B, 1.0)]], (OUT, IN))))
    true = float(torch.linalg.matrix_norm(B @ A))
    (most,) = found.most(0, (2,))
    assert true <= most * (1.0 + 1e-7)
    assert most <= true * (1.0 + 1e-6)
