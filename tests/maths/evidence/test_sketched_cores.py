"""Leading directions by iteration: as good as exact ones, and no function of the gauge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence, gather, orthonormal
from clair_cli.maths.factors import grams as gram_maths
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.maths.judge.client_scores import core_distance

OUT, IN, RANK, CLIENTS = 80, 60, 14, 11
Pair = tuple[Tensor, Tensor, float]


def cohort(seed: int = 0) -> list[list[Pair]]:
    """Four modules; the clients share four directions of each."""
    g = torch.Generator().manual_seed(seed)
    modules = []
    for _ in range(4):
        shared_A = torch.randn(4, IN, generator=g, dtype=torch.float64)
        shared_B = torch.randn(OUT, 4, generator=g, dtype=torch.float64)
        clients = []
        for _ in range(CLIENTS):
            A = 0.3 * torch.randn(RANK, IN, generator=g, dtype=torch.float64)
            B = 0.3 * torch.randn(OUT, RANK, generator=g, dtype=torch.float64)
            A[:4] += shared_A
            B[:, :4] += shared_B
            clients.append((A, B, 1.0))
        modules.append(clients)
    return modules


def evidence(modules: list[list[Pair]]) -> Evidence:
    return gather(grams(stack_factors(modules, (OUT, IN))))


def test_such_a_cohort_is_sketched() -> None:
    assert grams(stack_factors(cohort(), (OUT, IN))).sketch_B is not None
    assert CLIENTS * RANK > gram_maths.SKETCHED_ABOVE


def test_gauge_and_order_do_not_matter() -> None:
    modules, g = cohort(), torch.Generator().manual_seed(5)
    expected = core_distance(evidence(modules), range(CLIENTS))
    turned = []
    for clients in modules:
        new = []
        for A, B, scaling in clients:
            turn = torch.randn(RANK, RANK, generator=g, dtype=torch.float64)
            new.append((torch.linalg.inv(turn) @ A, B @ turn, scaling))
        turned.append(new)
    found = core_distance(evidence(turned), range(CLIENTS))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    order = list(reversed(range(CLIENTS)))
    shuffled = [[clients[k] for k in order] for clients in modules]
    found = core_distance(evidence(shuffled), range(CLIENTS))
    torch.testing.assert_close(found[order], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", [1, 2])
def test_they_hold_what_exact_ones_hold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sketched = evidence(cohort(seed))
    monkeypatch.setattr(gram_maths, "SKETCHED_ABOVE", 10**9)
    exact = evidence(cohort(seed))
    energy = [e.cores.square().sum((2, 3)) for e in (sketched, exact)]
    assert (energy[0] / energy[1]).min() > 0.97
    distances = [core_distance(e, range(CLIENTS)) for e in (sketched, exact)]
    torch.testing.assert_close(*distances, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e9, 1e13])
def test_a_basis_from_products_is_as_good_as_qr(condition: float) -> None:
    g = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(2, n, 24, generator=g, dtype=torch.float64)).Q
        for n in (200, 24)
    )
    columns = left * torch.logspace(0, -math.log10(condition), 24, dtype=torch.float64) @ right.mT
    basis, lost = orthonormal(columns)
    assert float(lost) < 1e-12
    np.testing.assert_allclose(basis.mT @ basis, np.eye(24)[None].repeat(2, 0), atol=1e-12)
    # the span: up to what rounding has already cost the given columns
    outside = left - basis @ (basis.mT @ left)
    assert float(outside.abs().max()) < 1e-14 * condition + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_of_fewer_directions_it_is_a_basis_or_says_that_it_is_none(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    few = torch.linalg.qr(torch.randn(1, 300, 10, generator=g, dtype=torch.float64)).Q
    columns = few @ torch.randn(10, 24, generator=g, dtype=torch.float64)
    basis, lost = orthonormal(columns)
    if float(lost) < 1e-10:
        np.testing.assert_allclose(basis[0].mT @ basis[0], np.eye(24), atol=1e-10)
        assert float((few - basis @ (basis.mT @ few)).abs().max()) < 1e-10
    else:
        assert float(lost) > 1e-3
    assert float(orthonormal(torch.zeros(2, 50, 4, dtype=torch.float64))[1]) == math.inf
