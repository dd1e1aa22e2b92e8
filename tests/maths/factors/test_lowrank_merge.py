"""Products, their spectra, the weighted sum and what is written, against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clair_cli.maths.factors.factored_svd import FactoredSVD, factored
from clair_cli.maths.factors.lowrank import (
    Product,
    inner,
    norm,
    numerical_rank,
    singular_values,
    svd,
    tail_norm,
)
from clair_cli.maths.factors.stack import Factors
from clair_cli.maths.merge.mean import SERVING_RANKS, choose_rank, plain_distance, weighted_sum
from clair_cli.maths.merge.rounding import WrittenModule, write_modules
from tests.maths.factors.test_stack import IN, OUT, cohort, dense, gauge, regauged, scaled

Matrix = NDArray[np.float64]


def product(rank: int, seed: int = 0, out: int = OUT, in_: int = IN) -> Product:
    g = torch.Generator().manual_seed(seed)
    return Product(
        torch.randn(out, rank, generator=g, dtype=torch.float64),
        torch.randn(rank, in_, generator=g, dtype=torch.float64),
    )


def multiplied(p: Product) -> Matrix:
    return p.lora_B.double().numpy() @ p.lora_A.double().numpy()


def write_module(
    exact: FactoredSVD, rank: int, scaling: float, dtype: torch.dtype
) -> WrittenModule | None:
    """`write_modules` of one."""
    (written,) = write_modules(exact, rank, scaling, dtype)
    return written


def relative(got: Matrix, expected: Matrix) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# lowrank


@pytest.mark.parametrize(("out", "in_"), [(13, 7), (7, 13)])
@pytest.mark.parametrize("rank", [0, 1, 3, 7, 20])
def test_spectrum_is_the_dense_one(rank: int, out: int, in_: int) -> None:
    p = product(rank, out=out, in_=in_)
    whole = multiplied(p)
    got = svd(p)
    n = min(rank, out, in_)
    assert got.values.shape == (n,)
    expected = np.linalg.svd(whole, compute_uv=False)[:n]
    np.testing.assert_allclose(got.values.numpy(), expected, rtol=1e-11)
    eye = torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(got.left.T @ got.left, eye)
    torch.testing.assert_close(got.right @ got.right.T, eye)
    rebuilt = (got.left * got.values @ got.right).numpy()
    np.testing.assert_allclose(rebuilt, whole, atol=1e-12)
    assert numerical_rank(got.values) == n
    assert norm(p) == pytest.approx(np.linalg.norm(whole), rel=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 3, 5, 9])
def test_truncation_is_the_best_one_and_its_tail_the_error(cut: int) -> None:
    p = product(5)
    whole = multiplied(p)
    got = svd(p)
    kept = write_module(factored(got), cut, 1.0, torch.float64)
    assert kept is not None
    assert kept.lora_B.shape == (OUT, cut)
    assert kept.lora_A.shape == (cut, IN)
    left, values, right = np.linalg.svd(whole)
    best = (left[:, :cut] * values[:cut]) @ right[:cut] if cut < 5 else whole
    rebuilt = multiplied(Product(kept.lora_B, kept.lora_A))
    np.testing.assert_allclose(rebuilt, best, atol=1e-12)
    assert tail_norm(got.values, cut) == pytest.approx(np.linalg.norm(whole - best), abs=1e-12)
    size_B = torch.linalg.vector_norm(kept.lora_B, dim=0)
    size_A = torch.linalg.vector_norm(kept.lora_A, dim=1)
    torch.testing.assert_close(size_A, size_B, rtol=1e-12, atol=0)
    assert not kept.lora_B[:, 5:].any()


def test_rank_counts_what_is_above_rounding() -> None:
    p = product(3)
    doubled = Product(torch.cat([p.lora_B, p.lora_B], 1), torch.cat([p.lora_A, p.lora_A]))
    assert numerical_rank(singular_values(doubled)) == 3
    assert numerical_rank(singular_values(product(0))) == 0
    zero = Product(torch.zeros(4, 2).double(), torch.zeros(2, 4).double())
    assert numerical_rank(singular_values(zero)) == 0


def test_sums_differences_and_multiples_are_exact() -> None:
    left, right = product(2, 1), product(3, 2)
    np.testing.assert_allclose(
        multiplied(left.scaled(-2.5) + right), -2.5 * multiplied(left) + multiplied(right)
    )
    np.testing.assert_allclose(multiplied(left - right), multiplied(left) - multiplied(right))
    assert norm(left - left) <= 1e-14 * norm(left)


@pytest.mark.parametrize("seed", range(5))
def test_signs_are_fixed_whatever_the_factors_gauge(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = product(4, seed)
    R = gauge(4, 50.0, g)
    turned = Product(-p.lora_B @ R, torch.linalg.solve(R, -p.lora_A))
    first, second = (write_module(factored(svd(q)), 4, 1.0, torch.float64) for q in (p, turned))
    assert first is not None and second is not None
    torch.testing.assert_close(first.lora_B, second.lora_B, rtol=0, atol=1e-9)
    torch.testing.assert_close(first.lora_A, second.lora_A, rtol=0, atol=1e-9)
    largest = first.lora_B.abs().argmax(0)
    assert (first.lora_B[largest, torch.arange(4)] > 0).all()


def test_a_broad_spectrum_keeps_its_small_values() -> None:
    """Through QR, not through Grams: 1e-10 of the largest value is still right."""
    g = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(OUT, 5, generator=g, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(IN, 5, generator=g, dtype=torch.float64))[0].T
    values = torch.tensor([1.0, 1e-3, 1e-6, 1e-8, 1e-10], dtype=torch.float64)
    got = svd(Product(left * values, right)).values
    torch.testing.assert_close(got, values, rtol=1e-5, atol=0)


def test_inner_products() -> None:
    g = torch.Generator().manual_seed(0)
    one, other = (
        Product(*(torch.randn(s, generator=g, dtype=torch.float64) for s in ((9, r), (r, 7))))
        for r in (3, 5)
    )
    expected = float((one.lora_B @ one.lora_A * (other.lora_B @ other.lora_A)).sum())
    assert inner(one, other) == pytest.approx(expected, rel=1e-12)
    assert inner(one, one) == pytest.approx(norm(one) ** 2, rel=1e-12)


# weighted_sum and plain_distance


def test_weighted_sum_is_exact() -> None:
    clients = cohort()[0]
    clients[1] = scaled(clients[1], 1.0, 1.0, -2.0)  # a negative scaling is legal
    weights = [0.5, 0.2, 0.9, -0.4]
    expected = sum(w * dense(f) for w, f in zip(weights, clients, strict=True))
    got = weighted_sum(clients, weights, (OUT, IN))
    assert relative(multiplied(got), np.asarray(expected)) < 1e-14
    assert got.lora_A.shape[0] == 3 + 1 + 4  # the missing module takes no columns


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_summed_stays_as_it_is(alone: bool) -> None:
    """Of float64, too, which needs no copy to be computed with; dtypes may differ, and terms be
    zero."""
    clients = [f for f in cohort()[1] if f is not None]
    clients = clients[:1] if alone else clients
    dtypes = [torch.float64, torch.bfloat16, torch.float16, torch.float32]
    given = [
        (A.to(dtype), B.to(dtype), s) for (A, B, s), dtype in zip(clients, dtypes, strict=False)
    ]
    if not alone:
        given[-1][0][0] = 0.0
    before = [(A.clone(), B.clone()) for A, B, _ in given]
    got = weighted_sum(given, [0.5] * len(given), (OUT, IN))
    expected = sum(0.5 * dense(f) for f in given)
    assert relative(multiplied(got), np.asarray(expected)) < 1e-14
    for (A, B, _), (old_A, old_B) in zip(given, before, strict=True):
        assert torch.equal(A, old_A) and torch.equal(B, old_B)


def test_weight_zero_leaves_a_client_out() -> None:
    clients = cohort()[1]
    got = weighted_sum(clients, [0.0, 1.0, 0.0, 1.0], (OUT, IN))
    assert relative(multiplied(got), dense(clients[1])) < 1e-14
    assert got.lora_A.shape[0] == 5
    empty = weighted_sum(clients, [0.0] * 4, (OUT, IN))
    assert empty.lora_B.shape == (OUT, 0)
    assert empty.lora_A.shape == (0, IN)
    assert norm(empty) == 0.0


@pytest.mark.parametrize(("size_A", "size_B"), [(1e30, 1e-30), (1e-30, 1e30), (1e30, 1e30)])
def test_weighted_sum_balances_extreme_factors(size_A: float, size_B: float) -> None:
    clients = cohort()[0]
    extreme = [scaled(f, size_A, size_B) for f in clients]
    got = weighted_sum(extreme, [0.25] * 4, (OUT, IN))
    expected = sum(0.25 * dense(f) for f in clients)
    assert relative(multiplied(got) / (size_A * size_B), np.asarray(expected)) < 1e-12
    assert got.lora_A.abs().max() <= 1e3 * (size_A * size_B) ** 0.5


def test_distance_to_the_plain_mean_and_its_norm() -> None:
    clients = cohort()[1]
    weights, plain = [0.5, 0.5, 0.0, 0.0], [0.25] * 4
    rows = torch.tensor(np.stack([dense(f).ravel() for f in clients]))
    distance, size = plain_distance(rows @ rows.T, weights, plain)
    exact = np.asarray(sum(w * dense(f) for w, f in zip(weights, clients, strict=True)))
    mean = np.asarray(sum(w * dense(f) for w, f in zip(plain, clients, strict=True)))
    assert size == pytest.approx(np.linalg.norm(mean), rel=1e-12)
    assert distance == pytest.approx(np.linalg.norm(exact - mean), rel=1e-12)
    values = singular_values(weighted_sum(clients, weights, (OUT, IN))).numpy()
    np.testing.assert_allclose(values[:7], np.linalg.svd(exact, compute_uv=False)[:7], atol=1e-12)


@pytest.mark.parametrize("n_copies", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merging_copies_gives_the_copy_back(n_copies: int, dtype: torch.dtype) -> None:
    """In float32, from any input dtype, each copy in the file's own factors."""
    g = torch.Generator().manual_seed(1)
    lora_A = (0.02 * torch.randn(4, IN, generator=g)).to(dtype)
    lora_B = (0.02 * torch.randn(OUT, 4, generator=g)).to(dtype)
    one: Factors = (lora_A, lora_B, 16 / 4**0.5)
    merged = weighted_sum([one] * n_copies, [1 / n_copies] * n_copies, (OUT, IN))
    written = write_module(factored(svd(merged)), 8, 1.0, torch.float32)
    assert written is not None
    assert relative(multiplied(Product(written.lora_B, written.lora_A)), dense(one)) <= 1e-6


def test_merging_copies_in_other_gauges_gives_the_copy_back() -> None:
    g = torch.Generator().manual_seed(2)
    one = cohort()[0][3]
    copies = [one, *(regauged(one, 1e3, g) for _ in range(4))]
    merged = weighted_sum(copies, [0.2] * 5, (OUT, IN))
    written = write_module(factored(svd(merged)), 4, 1.0, torch.float32)
    assert written is not None
    assert relative(multiplied(Product(written.lora_B, written.lora_A)), dense(one)) <= 1e-6


# choose_rank


def test_the_smallest_rank_within_the_target_is_chosen() -> None:
    errors = dict(zip(SERVING_RANKS, (0.4, 0.2, 0.1, 0.05, 0.0, 0.0, 0.0, 0.0), strict=True))
    assert choose_rank(errors, 0.1) == (32, False)
    assert choose_rank(errors, 0.0999) == (64, False)
    assert choose_rank(errors, 1.0) == (8, False)
    assert choose_rank(errors, 0.0) == (128, False)
    assert choose_rank(dict(reversed(errors.items())), 0.1) == (32, False)


def test_the_cap_is_reported() -> None:
    errors = dict.fromkeys(SERVING_RANKS, 0.3)
    assert choose_rank(errors, 0.1) == (512, True)
    assert choose_rank({8: 0.3, 16: 0.2}, 0.1, largest=16) == (16, True)
    assert choose_rank(dict.fromkeys(SERVING_RANKS, float("nan")), 0.1) == (512, True)
