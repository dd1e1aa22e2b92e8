"""Grams and norms of stacked factors against dense float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.maths.evidence.similarity import matrix_similarity
from clair_cli.maths.factors.grams import block_sums, grams
from clair_cli.maths.factors.stack import Factors, stack_factors

OUT, IN = 13, 7
RANKS = ((3, 1, 0, 4), (2, 5, 3, 0))  # per module and client; 0: the client lacks the module


def draw(generator: torch.Generator, rank: int) -> Factors:
    if rank == 0:
        return None
    lora_A = torch.randn(rank, IN, generator=generator, dtype=torch.float64)
    lora_B = torch.randn(OUT, rank, generator=generator, dtype=torch.float64)
    return lora_A, lora_B, 0.5 + rank


def cohort(seed: int = 0) -> list[list[Factors]]:
    g = torch.Generator().manual_seed(seed)
    return [[draw(g, rank) for rank in ranks] for ranks in RANKS]


def dense(factors: Factors) -> NDArray[np.float64]:
    if factors is None:
        return np.zeros((OUT, IN))
    lora_A, lora_B, scaling = factors
    return scaling * (lora_B.double().numpy() @ lora_A.double().numpy())


def gauge(rank: int, condition: float, generator: torch.Generator) -> Tensor:
    left, _, right = torch.linalg.svd(
        torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    )
    return left * torch.logspace(0, -np.log10(condition), rank, dtype=torch.float64) @ right


def regauged(factors: Factors, condition: float, generator: torch.Generator) -> Factors:
    if factors is None:
        return None
    lora_A, lora_B, scaling = factors
    R = gauge(len(lora_A), condition, generator)
    return torch.linalg.solve(R, lora_A), lora_B @ R, scaling


def scaled(factors: Factors, size_A: float, size_B: float, scaling: float = 1.0) -> Factors:
    return None if factors is None else (
        factors[0] * size_A, factors[1] * size_B, factors[2] * scaling
    )  # fmt: skip


def inner_products(modules: list[list[Factors]]) -> NDArray[np.float64]:
    flat = np.array([[dense(f).ravel() for f in clients] for clients in modules])
    return flat @ flat.transpose(0, 2, 1)


def from_grams(modules: list[list[Factors]]) -> NDArray[np.float64]:
    pair = grams(stack_factors(modules, (OUT, IN)))
    scale = pair.scale
    sums = block_sums(pair.B * pair.A, pair.ranks)
    return (sums * scale[:, :, None] * scale[:, None, :]).numpy()


def test_inner_products_and_norms_with_mixed_ranks_and_missing_modules() -> None:
    modules = cohort()
    expected = inner_products(modules)
    np.testing.assert_allclose(from_grams(modules), expected, rtol=1e-12, atol=1e-10)
    norms = grams(stack_factors(modules, (OUT, IN))).delta_norms.numpy()
    oracle = [[np.linalg.norm(dense(f)) for f in clients] for clients in modules]
    np.testing.assert_allclose(norms, oracle, rtol=1e-12)
    assert norms[0, 2] == 0.0
    assert norms[1, 3] == 0.0


def test_blocks_hold_the_delta_weight_and_padding_is_zero() -> None:
    modules = cohort()
    stack = stack_factors(modules, (OUT, IN))
    assert stack.ranks == (3, 5, 3, 4)
    assert stack.shape == (OUT, IN)
    for m, clients in enumerate(modules):
        starts = np.cumsum([0, *stack.ranks])
        for k, factors in enumerate(clients):
            block = slice(int(starts[k]), int(starts[k + 1]))
            B, A = stack.lora_B[m][:, block], stack.lora_A[m][block]
            product = stack.scaling[m, k] * (B @ A)
            np.testing.assert_allclose(product.numpy(), dense(factors), rtol=1e-12, atol=1e-12)
            rank = RANKS[m][k]
            assert not B[:, rank:].any()
            assert not A[rank:].any()


def test_components_are_balanced_and_the_largest_has_norm_one() -> None:
    modules = [[scaled(f, 1e5, 3e-9) for f in clients] for clients in cohort()]
    pair = grams(stack_factors(modules, (OUT, IN)))
    size_A, size_B = (gram.diagonal(dim1=1, dim2=2).sqrt() for gram in (pair.A, pair.B))
    torch.testing.assert_close(size_A, size_B, rtol=1e-12, atol=0)
    assert float((size_A * size_B).max()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gauge_of_condition_1e3_changes_nothing(seed: int) -> None:
    g = torch.Generator().manual_seed(100 + seed)
    modules = cohort(seed)
    turned = [[regauged(f, 1e3, g) for f in clients] for clients in modules]
    expected = inner_products(modules)
    np.testing.assert_allclose(
        from_grams(turned), expected, atol=1e-9 * np.abs(expected).max(), rtol=0
    )


@pytest.mark.parametrize(
    ("size_A", "size_B"),
    [(1e6, 1e-6), (1e-6, 1e6), (1e30, 1e30), (1e-30, 1e-30), (1e30, 1e-30), (1e-30, 1e30)],
)
def test_extreme_factors_neither_over_nor_underflow(size_A: float, size_B: float) -> None:
    plain = cohort()
    modules = [[scaled(f, size_A, size_B) for f in clients] for clients in plain]
    pair = grams(stack_factors(modules, (OUT, IN)))
    reference = grams(stack_factors(plain, (OUT, IN)))
    assert torch.isfinite(pair.B).all()
    assert torch.isfinite(pair.A).all()
    torch.testing.assert_close(pair.norms, reference.norms, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        pair.delta_norms, reference.delta_norms * (size_A * size_B), rtol=1e-10, atol=0
    )


def test_float32_factors_of_1e30_do_not_overflow() -> None:
    g = torch.Generator().manual_seed(3)
    lora_A = torch.randn(2, IN, generator=g) * 1e30
    lora_B = torch.randn(OUT, 2, generator=g) * 1e30
    expected = np.linalg.norm(lora_B.double().numpy() @ lora_A.double().numpy())
    norm = float(grams(stack_factors([[(lora_A, lora_B, 1.0)]], (OUT, IN))).delta_norms)
    assert norm == pytest.approx(expected, rel=1e-12)


def test_rank_one_components_of_very_different_size_keep_their_product() -> None:
    g = torch.Generator().manual_seed(4)
    lora_A, lora_B, _ = draw(g, 3)  # type: ignore[misc]
    sizes = torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)
    factors = (lora_A * sizes[:, None], lora_B / sizes, 1.0)
    norm = float(grams(stack_factors([[factors]], (OUT, IN))).delta_norms)
    assert norm == pytest.approx(np.linalg.norm(dense(factors)), rel=1e-12)


def test_negative_scaling_keeps_its_sign() -> None:
    factors = cohort()[0][0]
    negative = scaled(factors, 1.0, 1.0, -3.0)
    pair = grams(stack_factors([[factors, negative]], (OUT, IN)))
    assert float(matrix_similarity(pair).value[0, 0, 1]) == pytest.approx(-1.0, abs=1e-12)
    assert (pair.scale > 0).all()
    ratio = pair.delta_norms[0, 1] / pair.delta_norms[0, 0]
    assert float(ratio) == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_products_that_cancel_are_zero(condition: float) -> None:
    """D = B A - B A has norm 0, not the rounding error of its factors."""
    g = torch.Generator().manual_seed(5)
    lora_A, lora_B, _ = draw(g, 3)  # type: ignore[misc]
    R = gauge(3, condition, g)
    cancelling = (
        torch.cat([lora_A, torch.linalg.solve(R, lora_A)]), torch.cat([lora_B, -lora_B @ R], 1), 2.0
    )  # fmt: skip
    pair = grams(stack_factors([[cancelling, (lora_A, lora_B, 1.0)]], (OUT, IN)))
    assert float(pair.norms[0, 0]) == 0.0
    assert float(pair.norms[0, 1]) > 0.1
    assert torch.isnan(matrix_similarity(pair).value[0, 0]).all()


@pytest.mark.parametrize(
    "zero",
    [
        (torch.zeros(2, IN), torch.ones(OUT, 2), 1.0),
        (torch.ones(2, IN), torch.zeros(OUT, 2), 1.0),
        (torch.ones(2, IN), torch.ones(OUT, 2), 0.0),
        None,
    ],
)
def test_zero_delta_weights_have_norm_and_scale_zero(zero: Factors) -> None:
    pair = grams(stack_factors([[zero, cohort()[0][0]]], (OUT, IN)))
    assert float(pair.delta_norms[0, 0]) == 0.0
    assert float(pair.scale[0, 0]) == 0.0
    assert torch.isfinite(pair.B).all()


def test_a_zero_column_in_one_factor_is_harmless() -> None:
    lora_A, lora_B, scaling = cohort()[0][0]  # type: ignore[misc]
    lora_A = lora_A.clone()
    lora_A[1] = 0.0
    norm = float(grams(stack_factors([[(lora_A, lora_B, scaling)]], (OUT, IN))).delta_norms)
    assert norm == pytest.approx(np.linalg.norm(dense((lora_A, lora_B, scaling))), rel=1e-12)


@pytest.mark.parametrize(
    ("shape_A", "shape_B"),
    [((2, IN + 1), (OUT, 2)), ((2, IN), (OUT - 1, 2)), ((2, IN), (OUT, 3)), ((2, OUT), (IN, 2))],
)
def test_factors_that_do_not_fit_are_refused(
    shape_A: tuple[int, int], shape_B: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="do not make a delta weight"):
        stack_factors([[(torch.ones(shape_A), torch.ones(shape_B), 1.0)]], (OUT, IN))


def test_a_float32_stack_gives_the_same_norms_to_float32() -> None:
    modules = cohort()
    single = grams(stack_factors(modules, (OUT, IN), dtype=torch.float32))
    double = grams(stack_factors(modules, (OUT, IN)))
    assert single.B.dtype == torch.float64
    torch.testing.assert_close(single.delta_norms, double.delta_norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size_A", [1e-39, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_narrow_stack_holds_factors_of_any_size(size_A: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    A = (size_A * torch.randn(4, 30, generator=g, dtype=torch.float64)).to(dtype)
    B = (torch.randn(20, 4, generator=g, dtype=torch.float64) / size_A).clamp(-1e38, 1e38).to(dtype)
    narrow = stack_factors([[(A, B, 2.0)]], (20, 30), dtype=torch.float32)
    exact = 2.0 * B.double() @ A.double()
    found = narrow.scaling[0, 0] * narrow.lora_B[0].double() @ narrow.lora_A[0].double()
    assert torch.linalg.matrix_norm(found - exact) <= 1e-6 * torch.linalg.matrix_norm(exact)
    assert narrow.lora_A.dtype == torch.float32
