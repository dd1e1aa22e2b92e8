"""Products in coordinates of their own factors: the same numbers, without the layer's width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.maths.factors.coordinates import coordinates
from clair_cli.maths.factors.lowrank import Product, norm, singular_values, sum_of, svd
from tests.maths.factors.test_lowrank_merge import multiplied, product

WEIGHTS = (0.5, 0.2, -0.3)


@pytest.mark.parametrize(("out", "in_"), [(60, 44), (9, 50), (7, 5)])
@pytest.mark.parametrize("ranks", [(3, 5, 4), (0, 6, 1), (0, 0, 0)])
def test_sums_are_those_of_the_small_products(
    out: int, in_: int, ranks: tuple[int, int, int]
) -> None:
    """Also where there are more components than rows, and in a client with nothing."""
    given = [product(rank, seed=i, out=out, in_=in_) for i, rank in enumerate(ranks)]
    space = coordinates(given, bases=True)
    assert space.shape == (out, in_)
    assert space.left is not None and space.right is not None
    for one, small in zip(given, space.products, strict=True):
        assert small.lora_B.shape == (min(out, sum(ranks)), one.lora_B.shape[1])
        back = (space.left @ small.lora_B @ small.lora_A @ space.right.mT).numpy()
        np.testing.assert_allclose(back, multiplied(one), atol=1e-12)
    whole, small = sum_of(given, WEIGHTS), sum_of(space.products, WEIGHTS)
    assert norm(small) == pytest.approx(norm(whole), rel=1e-12)
    n = min(out, in_, sum(ranks))
    torch.testing.assert_close(singular_values(small)[:n], singular_values(whole)[:n])
    factored = space.factored(svd(small))
    assert factored.shape == (out, in_)
    if n:
        amounts = factored.values[:, :n].sqrt()
        left = torch.cat(list(factored.left_pieces(amounts)), dim=2)[0]
        right = torch.cat(list(factored.right_pieces(amounts)), dim=2)[0]
        np.testing.assert_allclose((left.mT @ right).numpy(), multiplied(whole), atol=1e-12)


def test_without_bases_there_are_the_same_small_products() -> None:
    given = [product(3, seed=1), product(2, seed=2)]
    with_, without = coordinates(given, bases=True), coordinates(given, bases=False)
    for one, other in zip(with_.products, without.products, strict=True):
        torch.testing.assert_close(one.lora_B, other.lora_B)
        torch.testing.assert_close(one.lora_A, other.lora_A)
    with pytest.raises(ValueError, match="without bases"):
        without.factored(svd(without.products[0]))
    assert with_.rounded(torch.float32).left.dtype == torch.float32  # type: ignore[union-attr]


def test_components_that_cancel_leave_rounding_errors_only() -> None:
    one = product(4, seed=3)
    difference = sum_of(coordinates([one, one], bases=False).products, [1.0, -1.0])
    assert norm(difference) <= 1e-14 * norm(one)
    assert isinstance(difference, Product)
