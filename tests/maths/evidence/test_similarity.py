"""Pairwise similarities in the three stackings against dense formulas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clair_cli.maths.evidence.similarity import (
    PairTable,
    matrix_similarity,
    mean_similarity,
    subspace_similarity,
    unit_side,
)
from clair_cli.maths.factors.grams import Grams, block_sums, grams
from clair_cli.maths.factors.roots import half_factors
from clair_cli.maths.factors.stack import Factors, stack_factors
from tests.maths.factors.test_stack import IN, OUT, cohort, dense, regauged, scaled

ALIVE = [(0, 1), (0, 3), (1, 3), (0, 0)]  # clients with a delta weight in module 0
Dense = NDArray[np.float64]


def squares(unit_gram: Tensor, ranks: Sequence[int]) -> Tensor:
    return block_sums(unit_gram * unit_gram, ranks)


def of(modules: list[list[Factors]]) -> Grams:
    return grams(stack_factors(modules, (OUT, IN)))


def tables(modules: list[list[Factors]]) -> dict[str, PairTable]:
    pair = of(modules)
    output, input_ = unit_side(pair.B, pair.A, pair), unit_side(pair.A, pair.B, pair)
    return {
        "matrix": matrix_similarity(pair),
        "output": subspace_similarity(squares(output, pair.ranks), OUT),
        "input": subspace_similarity(squares(input_, pair.ranks), IN),
    }


def cosine(left: Dense, right: Dense) -> float:
    return float((left * right).sum() / (np.linalg.norm(left) * np.linalg.norm(right)))


def lifted(stacking: str, delta: Dense) -> Dense:
    """What the stacking compares by its cosine."""
    return {"matrix": delta, "output": delta @ delta.T, "input": delta.T @ delta}[stacking]


@pytest.mark.parametrize("stacking", ["matrix", "output", "input"])
def test_values_match_the_dense_formula(stacking: str) -> None:
    modules = cohort()
    value = tables(modules)[stacking].value
    for j, k in ALIVE:
        left, right = (lifted(stacking, dense(modules[0][c])) for c in (j, k))
        assert float(value[0, j, k]) == pytest.approx(cosine(left, right), abs=1e-12)
        assert float(value[0, k, j]) == pytest.approx(cosine(left, right), abs=1e-12)
    assert torch.isnan(value[0, 2]).all()
    assert torch.isnan(value[0, :, 2]).all()


def rotations(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform over the orthogonal group (Haar's measure), (count, size, size)."""
    Q, R = np.linalg.qr(rng.standard_normal((count, size, size)))
    return Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None, :]


@pytest.mark.parametrize("stacking", ["matrix", "output", "input"])
def test_null_is_the_mean_over_random_rotations(stacking: str) -> None:
    """Turn one client's delta weight at random on both sides and average its similarity."""
    modules = cohort()
    left, right = dense(modules[0][0]), dense(modules[0][3])
    rng = np.random.default_rng(0)
    n = 4000
    turned = rotations(OUT, n, rng) @ right @ rotations(IN, n, rng)
    values = [cosine(lifted(stacking, left), lifted(stacking, delta)) for delta in turned]
    se = float(np.std(values)) / n**0.5
    null = float(tables(modules)[stacking].null[0, 0, 3])
    assert null == pytest.approx(np.mean(values), abs=4 * se)
    assert stacking == "matrix" or se < 0.02 * null  # the test could tell


@pytest.mark.parametrize("stacking", ["matrix", "output", "input"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_gauge_and_positive_scale_change_nothing(stacking: str, size: float) -> None:
    g = torch.Generator().manual_seed(1)
    modules = cohort()
    turned = [
        [scaled(regauged(f, 1e3, g), 1.0, 1.0, size**k) for k, f in enumerate(m)] for m in modules
    ]
    before, after = tables(modules)[stacking], tables(turned)[stacking]
    for name in ("value", "null"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=0, atol=1e-9, equal_nan=True
        )


def test_sign_shows_in_the_matrix_stacking_only() -> None:
    modules = cohort()
    flipped = [[scaled(m[0], 1.0, 1.0, -1.0), *m[1:]] for m in modules]
    before, after = tables(modules), tables(flipped)
    expected = before["matrix"].value.clone()
    expected[:, 0, 1:] *= -1
    expected[:, 1:, 0] *= -1
    torch.testing.assert_close(after["matrix"].value, expected, rtol=0, atol=1e-12, equal_nan=True)
    for side in ("output", "input"):
        torch.testing.assert_close(
            after[side].value, before[side].value, rtol=0, atol=1e-12, equal_nan=True
        )


def test_transposed_delta_weights_swap_the_sides() -> None:
    modules = cohort()
    swapped = [[None if f is None else (f[1].T, f[0].T, f[2]) for f in m] for m in modules]
    pair = grams(stack_factors(swapped, (IN, OUT)))
    output = unit_side(pair.B, pair.A, pair)
    here = subspace_similarity(squares(output, pair.ranks), IN)
    there = tables(modules)["input"]
    torch.testing.assert_close(here.value, there.value, rtol=0, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(here.null, there.null, rtol=0, atol=1e-12, equal_nan=True)


def test_unit_gram_has_the_singular_values_of_the_stack() -> None:
    modules = cohort()
    pair = of(modules)
    output, input_ = unit_side(pair.B, pair.A, pair), unit_side(pair.A, pair.B, pair)
    units = [dense(f) / np.linalg.norm(dense(f)) for f in modules[0] if f is not None]
    for gram, blocks in ((output, units), (input_, [u.T for u in units])):
        expected = np.linalg.svd(np.hstack(blocks), compute_uv=False)
        values = np.sqrt(np.clip(torch.linalg.eigvalsh(gram[0]).numpy()[::-1], 0, None))
        np.testing.assert_allclose(values[: len(expected)], expected, atol=1e-7)
        assert values[len(expected) :].max(initial=0.0) < 1e-6


def test_half_factors_are_square_roots_of_the_diagonal_blocks_only() -> None:
    pair = of(cohort())
    identity = torch.eye(sum(pair.ranks), dtype=torch.float64).expand_as(pair.A)
    root = half_factors(pair.A, pair.ranks).times(identity)
    product = root @ root.mT
    start = 0
    inside = torch.zeros(sum(pair.ranks), sum(pair.ranks), dtype=torch.bool)
    for rank in pair.ranks:
        block = slice(start, start + rank)
        torch.testing.assert_close(product[:, block, block], pair.A[:, block, block])
        inside[block, block] = True
        start += rank
    assert not root[:, ~inside].any()
    inverse = torch.where(pair.norms > 0, 1.0 / pair.norms, 0.0)
    columns = torch.repeat_interleave(inverse, torch.tensor(list(pair.ranks)), dim=1)
    scaled_root = root * columns[:, None, :]
    gram = unit_side(pair.B, pair.A, pair)
    torch.testing.assert_close(gram, scaled_root.mT @ pair.B @ scaled_root)


def test_mean_and_standard_error_over_modules() -> None:
    rng = np.random.default_rng(2)
    value = rng.uniform(0.1, 0.9, (5, 3, 3))
    value = (value + value.transpose(0, 2, 1)) / 2
    null = np.full_like(value, 0.1)
    value[0, 0, 1] = value[0, 1, 0] = np.nan  # four modules left for this pair
    value[1:, 0, 2] = value[1:, 2, 0] = np.nan  # one
    value[:, 1, 2] = value[:, 2, 1] = np.nan  # none
    table = PairTable(torch.from_numpy(value), torch.from_numpy(null))
    result = mean_similarity("output", table)
    excess = (value - 0.1) / 0.9
    known = excess[1:, 0, 1]
    assert float(result.excess[0, 1]) == pytest.approx(known.mean(), rel=1e-12)
    assert float(result.se[0, 1]) == pytest.approx(known.std(ddof=1) / 2, rel=1e-12)
    assert float(result.excess[0, 2]) == pytest.approx(excess[0, 0, 2], rel=1e-12)
    assert torch.isnan(result.se[0, 2])
    assert torch.isnan(result.excess[1, 2])
    assert result.n.tolist() == [[5, 4, 1], [4, 5, 0], [1, 0, 5]]
    assert result.excess.diagonal().tolist() == [1.0, 1.0, 1.0]
    assert result.se.diagonal().tolist() == [0.0, 0.0, 0.0]
