"""Both proximal operators: Moreau's identities, with the dual balls' projections in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.maths.factors.stack import block_norms, spread
from clair_cli.maths.judge.prox import (
    group_soft_threshold,
    left_singular,
    singular_value_threshold,
    spectral_norms,
)

THRESHOLDS = [0.0, 0.5, 3.0, 100.0]
DTYPES = [torch.float32, torch.float64]
RANKS = (3, 1, 4, 2)


def stack(dtype: torch.dtype, n_modules: int = 2, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    full = torch.randn(n_modules, 5, sum(RANKS), generator=g, dtype=torch.float64)
    full[:, :, 4:8] = 0.0  # client 2 has no delta weight
    return full.to(dtype)


def clip_singular(matrix: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Projection onto the spectral ball: the proximal operator of the conjugate."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left * np.minimum(values, bound) @ right)


def clip_blocks(full: NDArray[np.float64], bound: float, joint: bool) -> NDArray[np.float64]:
    """Projection of every block onto the ball of radius `bound`."""
    ends = np.cumsum((0, *RANKS))
    clipped = full.copy()
    groups = [slice(None)] if joint else [slice(m, m + 1) for m in range(len(full))]
    for start, end in pairwise(ends):
        for modules in groups:
            size = np.sqrt((full[modules, :, start:end] ** 2).sum())
            if size > bound:
                clipped[modules, :, start:end] *= bound / size
    return clipped


def tolerance(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 2e-5


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flat", [False, True])
def test_singular_value_threshold_obeys_moreau(
    threshold: float, dtype: torch.dtype, flat: bool
) -> None:
    full = stack(dtype)
    full = full if flat else full.mT
    result = singular_value_threshold(full, threshold)
    assert result.value.dtype == dtype
    for m in range(len(full)):
        given, value = full[m].double().numpy(), result.value[m].double().numpy()
        np.testing.assert_allclose(
            value + clip_singular(given, threshold), given, atol=tolerance(dtype)
        )
        dual = given - value  # in the ball, and aligned with the value: Fenchel's equality
        nuclear = np.linalg.svd(value, compute_uv=False).sum()
        assert np.linalg.norm(dual, 2) <= threshold + 10 * tolerance(dtype)
        assert (dual * value).sum() == pytest.approx(
            threshold * nuclear, abs=100 * tolerance(dtype)
        )
        assert float(result.nuclear_norm[m]) == pytest.approx(nuclear, abs=100 * tolerance(dtype))
        if threshold > 0:
            assert int(result.rank[m]) == np.linalg.matrix_rank(value, tol=1e-4)


@pytest.mark.parametrize("cols", [15, 40])
def test_far_more_columns_than_rows_make_no_difference(cols: int) -> None:
    g = torch.Generator().manual_seed(cols)
    full = torch.randn(3, 5, cols, generator=g, dtype=torch.float64)
    u, values, vt = torch.linalg.svd(full, full_matrices=False)
    left, found = left_singular(full)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close((u.mT @ left).abs(), torch.eye(5).double().expand(3, 5, 5))
    torch.testing.assert_close(spectral_norms(full), values[:, 0])
    threshold = float(values[:, 2].mean())
    step = singular_value_threshold(full, threshold)
    shrunk = (values - threshold).clamp_min(0.0)
    torch.testing.assert_close(step.value, u * shrunk[:, None, :] @ vt)
    torch.testing.assert_close(step.nuclear_norm, shrunk.sum(1))
    assert torch.equal(step.rank, (shrunk > 0).sum(1))


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_soft_threshold_obeys_moreau(
    threshold: float, dtype: torch.dtype, joint: bool
) -> None:
    full = stack(dtype)
    value = group_soft_threshold(full, RANKS, threshold, joint=joint)
    assert value.dtype == dtype
    given = full.double().numpy()
    np.testing.assert_allclose(
        value.double().numpy() + clip_blocks(given, threshold, joint),
        given,
        atol=tolerance(dtype),
    )
    assert torch.isfinite(value).all()
    assert not value[:, :, 4:8].any()


def test_thresholds_differ_between_joint_and_single_blocks() -> None:
    full = stack(torch.float64)
    single = block_norms(full, RANKS, joint=False)
    joint = block_norms(full, RANKS, joint=True)
    assert single.shape == (2, 4)
    torch.testing.assert_close(joint, (single**2).sum(0).sqrt(), rtol=1e-12, atol=0)
    between = (float(single[:, 0].max()) + float(joint[0])) / 2
    assert group_soft_threshold(full, RANKS, between, joint=True)[:, :, :3].any()
    assert not group_soft_threshold(full, RANKS, between, joint=False)[:, :, :3].any()


def test_a_block_at_its_threshold_is_exactly_zero() -> None:
    full = stack(torch.float64)
    norms = block_norms(full, RANKS, joint=True)
    kept = group_soft_threshold(full, RANKS, float(norms[0]), joint=True)
    assert not kept[:, :, :3].any()
    kept = group_soft_threshold(full, RANKS, float(norms[0]) * (1 - 1e-12), joint=True)
    assert kept[:, :, :3].any()


def test_spread_gives_every_column_its_block() -> None:
    per_block = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor([1.0] * 3 + [2.0] + [3.0] * 4 + [4.0] * 2)
    assert torch.equal(spread(per_block, RANKS), expected[None, None])
    both = torch.stack([per_block, 10 * per_block])
    assert torch.equal(spread(both, RANKS), torch.stack([expected, 10 * expected])[:, None])


def test_a_zero_stack_stays_zero() -> None:
    zero = torch.zeros(2, 5, sum(RANKS))
    assert not singular_value_threshold(zero, 0.5).value.any()
    assert not group_soft_threshold(zero, RANKS, 0.5).any()


@pytest.mark.parametrize("threshold", [-1e-9, float("nan")])
def test_thresholds_below_zero_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        singular_value_threshold(stack(torch.float64), threshold)
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        group_soft_threshold(stack(torch.float64), RANKS, threshold)


def test_a_single_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="n_modules, rows, cols"):
        singular_value_threshold(torch.ones(3, 4), 1.0)
