"""The estimated gain of refinement: against measured errors, closed forms, and its own error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.refine.gain import (
    Gain,
    estimate_gain,
    mixing,
    noise_from_counts,
    noise_from_option,
)
from clair_cli.maths.refine.refine import (
    SharedSubspace,
    off_subspace,
    refine_module,
    shared_subspace,
)
from tests.planted import orthonormal

OUT, IN, DIM, K = 24, 16, 3, 6


def product(delta: Tensor) -> Product:
    return Product(delta, torch.eye(delta.shape[1], dtype=torch.float64))


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def errors(
    g: torch.Generator, truth: Tensor, sigma: float, weights: list[float], space: SharedSubspace
) -> list[tuple[float, Gain]]:
    """Measured refined - local squared error and the estimate, per client, noise drawn anew."""
    deltas = truth + sigma * normal(g, *truth.shape)
    products = [product(d) for d in deltas]
    mean = product((torch.tensor(weights, dtype=torch.float64)[:, None, None] * deltas).sum(0))
    off = off_subspace(products, weights, mean, space)
    model = noise_from_option(sigma, off.energy, off.n_entries)
    found = []
    for k, local in enumerate(products):
        refined = refine_module(local, mean, space)
        change = ((refined.lora_B @ refined.lora_A - truth[k]) ** 2).sum() - (
            (deltas[k] - truth[k]) ** 2
        ).sum()
        gain = estimate_gain(
            model, k, off.energy, weights, off.n_inside, off.n_entries, 0.0
        )  # the subspace is given, not fitted
        found.append((float(change), gain))
    return found


@pytest.mark.parametrize("weights", [[1 / 6] * 6, [0.4, 0.3, 0.1, 0.1, 0.05, 0.05]])
def test_the_estimate_is_unbiased_for_every_client_however_unlike(weights: list[float]) -> None:
    g = torch.Generator().manual_seed(0)
    space = SharedSubspace("output", orthonormal(OUT, DIM, g), None)
    apart = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 5.0], dtype=torch.float64).sqrt()
    truth = 0.3 * apart[:, None, None] * normal(g, K, OUT, IN)  # sigma is 0.3: the levels matter
    scores = torch.zeros(K, 200, dtype=torch.float64)
    for repeat in range(200):
        for k, (change, gain) in enumerate(errors(g, truth, 0.3, weights, space)):
            scores[k, repeat] = (gain.refined - gain.local - change) / gain.se
    assert scores.mean(1).abs().max() <= 0.25  # standard error 0.07
    assert bool(((scores.std(1) > 0.8) & (scores.std(1) < 1.2)).all())


@pytest.mark.parametrize("common", [0.0, 4.0])
def test_a_fitted_subspace_takes_in_noise_as_far_as_differences_decide(common: float) -> None:
    """<d_k, n_k> off the fitted subspace, over all clients, beside that off the true one."""
    g = torch.Generator().manual_seed(1)
    sigma, repeats, lost, predicted, most = 0.05, 40, 0.0, 0.0, 0
    for _ in range(repeats):
        U = orthonormal(OUT, DIM, g)
        truth = U @ (common * normal(g, 1, DIM, IN) + normal(g, K, DIM, IN))
        noise = sigma * normal(g, K, OUT, IN)
        deltas = [product(d) for d in truth + noise]
        mean = product((truth + noise).mean(0))
        space = shared_subspace(deltas, [1.0] * K, "output", DIM)
        off = off_subspace(deltas, [1 / K] * K, mean, space)
        away = truth + noise - mean.lora_B
        assert space.U is not None
        inside = [float(((B.mT @ noise) * (B.mT @ away)).sum()) for B in (space.U, U)]
        lost += (inside[0] - inside[1]) / sigma**2
        predicted, most = predicted + off.n_fitted, most + space.n_parameters((OUT, IN))
    assert lost == pytest.approx(predicted, rel=0.2)
    assert most == repeats * (OUT - DIM) * DIM
    if common:
        assert predicted < 0.2 * most
    else:
        assert predicted > 0.7 * most


def expected_energies(
    weights: list[float], counts: list[float], level: float, tau: float
) -> list[float]:
    """Mean of off_subspace's energies over noise and differences: 50 degrees of freedom."""
    noise = sum(w * w * tau / n for w, n in zip(weights, counts, strict=True))
    return [
        level + 50 * (tau / n * (1 - 2 * weights[k]) + noise) / mixing(weights, k)
        for k, n in enumerate(counts)
    ]


@pytest.mark.parametrize("level", [0.0, 3.0])
@pytest.mark.parametrize("by_count", [True, False])
def test_counts_give_noise_and_heterogeneity(level: float, by_count: bool) -> None:
    counts = [10.0, 20.0, 50.0, 100.0, 400.0]
    weights = [n / sum(counts) if by_count else 0.2 for n in counts]
    model = noise_from_counts(expected_energies(weights, counts, level, 2.0), counts, weights, 50)
    assert model.source == "weights"
    assert model.variances == pytest.approx([2.0 / n for n in counts])
    assert model.heterogeneity == pytest.approx(level, abs=1e-9)
    assert 0.05 < model.relative_error < 0.5  # sums of 50 squares, five of them


def test_energies_off_the_line_make_the_noise_uncertain() -> None:
    counts, weights = [10.0, 20.0, 50.0, 100.0, 400.0], [0.2] * 5
    exact = expected_energies(weights, counts, 3.0, 2.0)
    bent = [e * f for e, f in zip(exact, (1.0, 2.0, 0.5, 2.0, 1.0), strict=True)]
    model = noise_from_counts(bent, counts, weights, 50_000)
    assert (
        model.relative_error > 10 * noise_from_counts(exact, counts, weights, 50_000).relative_error
    )
    gain = estimate_gain(model, 0, bent, weights, 100, 50_000, 0.0)
    assert not gain.sure


def test_more_apart_with_more_samples_is_no_noise_at_all() -> None:
    counts, weights = [10.0, 20.0, 50.0, 100.0], [0.25] * 4
    model = noise_from_counts([1.0, 2.0, 3.0, 4.0], counts, weights, 50)
    assert (model.variances, model.source) == ((0.0,) * 4, "weights")
    gain = estimate_gain(model, 0, [1.0, 2.0, 3.0, 4.0], weights, 10, 50, 0.0)
    assert (gain.local, gain.gain, gain.sure) == (0.0, 0.0, False)
    assert gain.refined == pytest.approx(mixing(weights, 0))


@pytest.mark.parametrize("counts", [[10.0, 20.0, 50.0], [10.0, 11.0, 12.0, 14.0]])
def test_few_clients_or_counts_that_are_alike_identify_nothing(counts: list[float]) -> None:
    weights = [1 / len(counts)] * len(counts)
    model = noise_from_counts([4.0, 3.0, 2.0, 1.0][: len(counts)], counts, weights, 50)
    assert not model.known
    assert all(math.isnan(v) for v in model.variances)


def test_only_a_gain_beyond_its_margin_is_sure() -> None:
    """Of four standard errors."""
    assert Gain(1.0, 0.8, 0.19 / 4).sure
    assert not Gain(1.0, 0.8, 0.21 / 4).sure
    assert not Gain(1.0, 1.2, 0.0).sure
    assert not Gain(1.0, 0.5, float("nan")).sure
    assert not Gain(float("nan"), 0.5, 0.0).sure


def test_far_too_large_a_noise_makes_no_error_negative() -> None:
    model = noise_from_option(10.0, [1.0] * 4, 50)
    gain = estimate_gain(model, 0, [1.0] * 4, [0.25] * 4, 10, 50, 0.0)
    assert gain.refined == pytest.approx(100.0 * 10)


def test_what_was_fitted_counts_against_refinement() -> None:
    model = noise_from_option(0.5, [20.0] * 4, 50)
    free, fitted = (estimate_gain(model, 0, [20.0] * 4, [0.25] * 4, 10, 50, n) for n in (0.0, 12.0))
    assert fitted.refined - free.refined == pytest.approx(2 * 0.25 * 12.0 / 4)
