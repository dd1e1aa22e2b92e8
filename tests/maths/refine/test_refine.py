"""Refinement: projections, subspaces and energies against dense numpy, and what it gains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.refine.refine import (
    SIDES,
    SharedSubspace,
    off_subspace,
    refine_module,
    shared_subspace,
)
from tests.planted import orthonormal

OUT, IN, DIM, K = 12, 9, 3, 5
Matrix = NDArray[np.float64]


def product(delta: Tensor) -> Product:
    """A dense delta weight as a product with a trivial factor."""
    return Product(delta, torch.eye(delta.shape[1], dtype=torch.float64))


def multiplied(p: Product) -> Matrix:
    return (p.lora_B @ p.lora_A).numpy()


def clients(rank: int = 4, seed: int = 0) -> list[Product]:
    g = torch.Generator().manual_seed(seed)
    return [
        Product(
            torch.randn(OUT, rank, generator=g, dtype=torch.float64),
            torch.randn(rank, IN, generator=g, dtype=torch.float64) * (1 + k),
        )
        for k in range(K)
    ]


def subspace(side: str, seed: int = 1) -> SharedSubspace:
    g = torch.Generator().manual_seed(seed)
    U = orthonormal(OUT, DIM, g) if side != "input" else None
    V = orthonormal(IN, DIM, g) if side != "output" else None
    return SharedSubspace(side, U, V)


def projected(delta: Matrix, space: SharedSubspace) -> Matrix:
    left = np.eye(OUT) if space.U is None else (space.U @ space.U.T).numpy()
    right = np.eye(IN) if space.V is None else (space.V @ space.V.T).numpy()
    return np.asarray(left @ delta @ right)


@pytest.mark.parametrize("side", SIDES)
def test_refined_client_is_its_part_inside_and_the_mean_outside(side: str) -> None:
    space, local, mean = subspace(side), clients()[0], clients()[1]
    assert space.dim == DIM
    D, average = multiplied(local), multiplied(mean)
    expected = projected(D, space) + average - projected(average, space)
    np.testing.assert_allclose(multiplied(refine_module(local, mean, space)), expected, atol=1e-12)
    np.testing.assert_allclose(multiplied(space.project(local)), projected(D, space), atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dim", [1, 3, 6])
def test_shared_subspace_is_that_of_the_dense_stack(side: str, dim: int) -> None:
    products = clients()
    dense = [multiplied(p) for p in products]
    weights = [float(1 / np.linalg.norm(D)) for D in dense]
    got = shared_subspace(products, weights, side, dim)
    for basis, blocks in ((got.U, dense), (got.V, [D.T for D in dense])):
        if basis is None:
            continue
        stack = np.hstack([w * D for w, D in zip(weights, blocks, strict=True)])
        expected = np.linalg.svd(stack)[0][:, :dim]
        np.testing.assert_allclose((basis @ basis.T).numpy(), expected @ expected.T, atol=1e-10)
    assert (got.U is None) == (side == "input")
    assert (got.V is None) == (side == "output")
    unweighted = shared_subspace(products, [1.0] * K, side, dim)
    for weighted, other in ((got.U, unweighted.U), (got.V, unweighted.V)):
        if weighted is not None and other is not None:
            assert not torch.allclose(weighted @ weighted.T, other @ other.T, atol=1e-3)


def test_no_dimensions_give_the_mean_back() -> None:
    space = shared_subspace(clients(), [1.0] * K, "both", 0)
    assert space.dim == 0
    refined = refine_module(clients()[0], clients()[1], space)
    np.testing.assert_allclose(multiplied(refined), multiplied(clients()[1]), atol=1e-12)


def test_a_subspace_has_no_more_dimensions_than_the_stack() -> None:
    one = shared_subspace([clients(2)[0]], [1.0], "both", 8)
    assert one.U is not None
    assert one.V is not None
    assert one.U.shape == (OUT, 2)
    assert one.V.shape == (IN, 2)


def test_unknown_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="side must be one of"):
        shared_subspace(clients(), [1.0] * K, "matrix", 2)


def weighted_mean(deltas: Tensor, weights: list[float]) -> Product:
    return product((torch.tensor(weights, dtype=torch.float64)[:, None, None] * deltas).sum(0))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("weights", [[0.2] * 5, [0.5, 0.2, 0.1, 0.1, 0.1]])
def test_energy_off_the_subspace_is_unbiased(side: str, weights: list[float]) -> None:
    """Known noise, own part inside the subspace, a common part anywhere."""
    g = torch.Generator().manual_seed(4)
    sigma, repeats = 0.7, 150
    space = subspace(side)
    common = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    total = torch.zeros(K, dtype=torch.float64)
    for _ in range(repeats):
        own = torch.randn(K, OUT, IN, generator=g, dtype=torch.float64)
        inside = torch.stack([torch.from_numpy(projected(d.numpy(), space)) for d in own])
        noise = torch.randn(K, OUT, IN, generator=g, dtype=torch.float64)
        deltas = common + 5 * inside + sigma * noise
        got = off_subspace(
            [product(d) for d in deltas], weights, weighted_mean(deltas, weights), space
        )
        total += torch.tensor(got.energy, dtype=torch.float64)
    per_entry = (total / repeats / got.n_entries).numpy()
    np.testing.assert_allclose(per_entry, sigma**2, rtol=0.05)
    entries = {"output": DIM * IN, "input": OUT * DIM, "both": DIM * DIM}
    assert got.n_inside == entries[side]
    assert got.n_inside + got.n_entries == OUT * IN


def test_one_client_alone_has_no_energy_off_the_subspace() -> None:
    delta = multiplied(clients()[0])
    one = product(torch.from_numpy(delta))
    assert off_subspace([one], [1.0], one, subspace("output")).energy == (0.0,)


@pytest.mark.parametrize("side", SIDES)
def test_refining_gains_the_predicted_factor_with_the_true_subspace(side: str) -> None:
    """sigma^2 (d_in + d_off / K) / d per entry against sigma^2 for the local adapter."""
    g = torch.Generator().manual_seed(5)
    sigma, repeats, space = 0.5, 40, subspace(side)
    common = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    refined_error = local_error = 0.0
    for _ in range(repeats):
        own = torch.randn(K, OUT, IN, generator=g, dtype=torch.float64)
        truth = common + torch.stack([torch.from_numpy(projected(d.numpy(), space)) for d in own])
        deltas = truth + sigma * torch.randn(K, OUT, IN, generator=g, dtype=torch.float64)
        mean = weighted_mean(deltas, [1 / K] * K)
        for k in range(K):
            refined = multiplied(refine_module(product(deltas[k]), mean, space))
            refined_error += float(((refined - truth[k].numpy()) ** 2).mean())
            local_error += float(((deltas[k] - truth[k]) ** 2).mean())
    n = repeats * K
    sizes = off_subspace([product(deltas[0])], [1.0], mean, space)
    d = OUT * IN
    predicted = sigma**2 * (sizes.n_inside + sizes.n_entries / K) / d
    assert local_error / n == pytest.approx(sigma**2, rel=0.05)
    assert refined_error / n == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("side", ["output", "input"])
def test_refining_gains_with_the_estimated_subspace_of_the_true_dimension(side: str) -> None:
    """Signal well above the noise: the estimate costs a little of the predicted gain."""
    g = torch.Generator().manual_seed(6)
    sigma, n, out, in_ = 0.1, 12, 24, 18
    basis = orthonormal(out if side == "output" else in_, DIM, g)
    shape = (n, DIM, in_) if side == "output" else (n, DIM, out)
    inside = basis @ torch.randn(shape, generator=g, dtype=torch.float64)
    truth = inside if side == "output" else inside.mT
    deltas = truth + sigma * torch.randn(n, out, in_, generator=g, dtype=torch.float64)
    products = [product(d) for d in deltas]
    space = shared_subspace(products, [float(1 / d.norm()) for d in deltas], side, DIM)
    mean = weighted_mean(deltas, [1 / n] * n)
    refined = torch.stack(
        [torch.from_numpy(multiplied(refine_module(p, mean, space))) for p in products]
    )
    local = float(((deltas - truth) ** 2).mean())
    error = float(((refined - truth) ** 2).mean())
    d_in = DIM * (in_ if side == "output" else out)
    predicted = sigma**2 * (d_in + (out * in_ - d_in) / n) / (out * in_)
    assert predicted < 0.35 * local
    assert error == pytest.approx(predicted, rel=0.25)
