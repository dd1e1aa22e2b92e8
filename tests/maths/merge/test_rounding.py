"""What is written, and the error it is said to have, against dense float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.maths.factors.factored_svd import FactoredSVD, factored
from clair_cli.maths.factors.grams import add_symmetric
from clair_cli.maths.factors.lowrank import SVD, Product, svd, tail_norm
from clair_cli.maths.merge import rounding
from clair_cli.maths.merge.rounding import write_modules
from tests.maths.factors.test_lowrank_merge import multiplied, product, write_module
from tests.maths.factors.test_stack import IN, OUT


@pytest.mark.parametrize("rank", [2, 4, 16])
@pytest.mark.parametrize("scaling", [1.0, 4.0, 0.3])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_the_error_of_what_is_written_is_measured(
    dtype: torch.dtype, rounding: float, scaling: float, rank: int
) -> None:
    exact = svd(product(4))
    whole = (exact.left * exact.values @ exact.right).numpy()
    got = write_module(factored(exact), rank, scaling, dtype)
    assert got is not None
    assert got.lora_A.dtype == got.lora_B.dtype == dtype
    assert got.lora_A.shape == (rank, IN)
    assert got.lora_B.shape == (OUT, rank)
    file = scaling * multiplied(Product(got.lora_B, got.lora_A))
    assert got.error == pytest.approx(np.linalg.norm(whole - file), rel=1e-5)
    assert got.error <= tail_norm(exact.values, rank) + rounding * np.linalg.norm(whole)
    assert not got.lora_A[4:].any()


def test_overflow_in_the_output_dtype_gives_none() -> None:
    big = svd(product(4).scaled(1e10))
    assert write_module(factored(big), 4, 1.0, torch.float16) is None
    assert write_module(factored(big), 4, 1.0, torch.float32) is not None
    assert write_module(factored(big), 4, 1e10, torch.float16) is not None  # the scaling takes it
    huge = Product(product(4).lora_B * 1e40, product(4).lora_A * 1e40)
    assert write_module(factored(svd(huge)), 4, 1.0, torch.float32) is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_either_factor_gives_none(side: str, value: float) -> None:
    exact = svd(product(4))
    getattr(exact, side)[0, 0] = value
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert write_module(factored(exact), 4, 1.0, dtype) is None


def turned(
    out: int, in_: int, components: int, dtype: torch.dtype
) -> tuple[FactoredSVD, np.ndarray]:
    """Singular vectors as coordinates on factors of 16 bits; and the dense product."""
    g = torch.Generator().manual_seed(out)
    lora_B = torch.randn(out, components, generator=g).bfloat16()
    lora_A = torch.randn(components, in_, generator=g).bfloat16()
    dense = (lora_B.double() @ lora_A.double()).numpy()
    exact = svd(Product(lora_B.double(), lora_A.double()))
    left = torch.linalg.lstsq(lora_B.double(), exact.left).solution
    right = torch.linalg.lstsq(lora_A.double().mT, exact.right.mT).solution.mT
    return FactoredSVD(
        lora_B[None], lora_A[None], exact.values[None], left[None], right[None], dtype
    ), dense


@pytest.mark.parametrize(("out", "in_"), [(2100, 40), (40, 2100), (1025, 1024)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sides_made_piece_by_piece(out: int, in_: int, dtype: torch.dtype) -> None:
    products = torch.float32 if dtype == torch.bfloat16 else torch.float64
    exact, dense = turned(out, in_, 20, products)
    got = write_module(exact, 8, 2.0, dtype)
    assert got is not None
    wrong = dense - 2.0 * multiplied(Product(got.lora_B, got.lora_A))
    assert got.error == pytest.approx(np.linalg.norm(wrong), rel=1e-5)
    best = float(exact.values[0, 8:].norm())
    assert best <= got.error <= 1.01 * best
    top = got.lora_B.gather(0, got.lora_B.abs().argmax(0, keepdim=True))
    assert (top > 0).all()


@pytest.mark.parametrize(("tail", "whole"), [(0.06, True), (0.065, False)])
def test_only_what_counts_is_measured_to_its_last_digit(
    monkeypatch: pytest.MonkeyPatch, tail: float, whole: bool
) -> None:
    """Roundings to bfloat16 (2**-7) do beside what is cut off if that is below eight times them."""
    seen, real = [], rounding._round

    def spied(pieces: Any, out: Any, by: Any, whole: bool, **more: Any) -> Any:
        seen.append(whole)
        return real(pieces, out, by, whole, **more)

    monkeypatch.setattr(rounding, "_round", spied)
    eye = torch.eye(4, dtype=torch.float64)[None]
    values = torch.tensor([[1.0, tail]], dtype=torch.float64)
    write_module(FactoredSVD(eye[:, :, :2], eye[:, :2], values, None, None), 1, 1.0, torch.bfloat16)
    assert seen == [whole] * 2


@pytest.mark.parametrize("tail", [0.0, 0.2])
def test_roundings_that_do_not_cancel(tail: float) -> None:
    """All entries of the vector that is kept are rounded by the same share."""
    out, in_ = 64, 48
    left = torch.linalg.qr(torch.cat([torch.ones(out, 1), torch.randn(out, 1)], 1).double()).Q
    right = torch.linalg.qr(torch.cat([torch.ones(in_, 1), torch.randn(in_, 1)], 1).double()).Q
    values = torch.tensor([1.7, 1.7 * tail], dtype=torch.float64)
    exact = FactoredSVD(left[None], right.mT[None], values[None], None, None)
    got = write_module(exact, 1, 1.0, torch.bfloat16)
    assert got is not None
    wrong = (left * values @ right.mT).numpy() - multiplied(Product(got.lora_B, got.lora_A))
    assert got.error == pytest.approx(np.linalg.norm(wrong), rel=1e-5)


def test_more_singular_vectors_than_are_known_are_refused() -> None:
    exact, _ = turned(30, 30, 12, torch.float64)
    fewer = FactoredSVD(
        exact.lora_B, exact.lora_A, exact.values, exact.left[:, :, :4], exact.right[:, :4]
    )
    assert write_module(fewer, 4, 1.0, torch.float32) is not None
    with pytest.raises(ValueError, match="4 singular vectors, 5 needed"):
        write_module(fewer, 5, 1.0, torch.float32)


def test_the_largest_entry_of_each_left_vector_is_positive() -> None:
    exact = svd(product(4))
    flipped = factored(exact)
    flipped = FactoredSVD(-flipped.lora_B, -flipped.lora_A, flipped.values, None, None)
    one, other = (write_module(e, 4, 1.0, torch.float32) for e in (factored(exact), flipped))
    assert one is not None and other is not None
    assert torch.equal(one.lora_B, other.lora_B) and torch.equal(one.lora_A, other.lora_A)
    assert (one.lora_B.gather(0, one.lora_B.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("n", [1, 63, 64, 200, 1025])
def test_a_symmetric_product_in_blocks(n: int) -> None:
    rows = torch.randn(2, n, 7, dtype=torch.float64)
    got = torch.ones(2, n, n, dtype=torch.float64)
    add_symmetric(got, rows)
    torch.testing.assert_close(got.tril(), (1 + rows @ rows.mT).tril(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("sizes", [(1.0, 0.01, 30.0), (1.0, 1e30, 1e-12), (0.0, 1.0, float("nan"))])
def test_some_modules_at_once_are_as_each_of_them_alone(
    sizes: tuple[float, ...], rank: int
) -> None:
    """Of any size, and among them one of zeros and one that is not finite."""
    each = [factored(svd(product(12, seed=i).scaled(s))) for i, s in enumerate(map(finite, sizes))]
    for one, size in zip(each, sizes, strict=True):
        if size != size:
            one.values[0, 0] = size
    together = FactoredSVD(
        torch.cat([e.lora_B for e in each]), torch.cat([e.lora_A for e in each]),
        torch.cat([e.values for e in each]), None, None,
    )  # fmt: skip
    every = write_modules(together, rank, 2.0, torch.bfloat16)
    for one, size, found in zip(each, sizes, every, strict=True):
        (alone,) = write_modules(one, rank, 2.0, torch.bfloat16)
        assert (found is None) == (alone is None) == (size != size)
        if found is not None and alone is not None:
            assert torch.equal(found.lora_A, alone.lora_A)
            assert torch.equal(found.lora_B, alone.lora_B)
            assert found.error == pytest.approx(alone.error, rel=1e-4)


def finite(size: float) -> float:
    return size if size == size else 1.0


def test_vectors_that_are_not_those_of_the_values_are_a_fault() -> None:
    g = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(20, 3, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(15, 3, generator=g, dtype=torch.float64)).Q.mT
    values = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    for by in (1.0, 1.004):  # squares count
        assert write_modules(factored(SVD(by * left, values, right)), 3, 1.0, torch.float32)
    for wrong in (SVD(1.006 * left, values, right), SVD(left, values, 0.9 * right)):
        with pytest.raises(ArithmeticError, match="off by"):
            write_modules(factored(wrong), 3, 1.0, torch.float32)
