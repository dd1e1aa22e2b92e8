"""The merge from Gram matrices against dense float64 numpy, and when it is not to be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.maths.merge.from_grams import core_svds

OUT, IN, RANKS = 60, 44, (3, 5, 8)


def clients(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(r, IN, generator=g, dtype=torch.float64),
            torch.randn(OUT, r, generator=g, dtype=torch.float64),
            0.5 * r,
        )
        for r in RANKS
    ]


def core_of(factors: list, weights: list[float]):  # type: ignore[no-untyped-def]
    stack = stack_factors([factors], (OUT, IN))
    pair = grams(stack)
    return stack, core_svds(pair, weights)[0]


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1.0, 0.0, 1e-3]])
def test_it_is_the_singular_value_decomposition_of_the_mean(weights: list[float]) -> None:
    factors = clients()
    stack, core = core_of(factors, weights)
    assert core is not None
    dense = sum(w * s * (B @ A) for w, (A, B, s) in zip(weights, factors, strict=True)).numpy()
    left, right = (stack.lora_B[0] @ core.left).numpy(), (core.right @ stack.lora_A[0]).numpy()
    np.testing.assert_allclose(left * core.values.numpy() @ right, dense, atol=1e-11)
    np.testing.assert_allclose(left.T @ left, np.eye(left.shape[1]), atol=1e-11)
    np.testing.assert_allclose(right @ right.T, np.eye(right.shape[0]), atol=1e-11)
    exact = np.linalg.svd(dense, compute_uv=False)[: len(core.values)]
    np.testing.assert_allclose(core.values.numpy(), exact, rtol=1e-11)


def test_sums_that_cancel_are_seen() -> None:
    """Of two clients with the same lora_B: well-conditioned in neither side."""
    first, second, third = clients()
    factors = [first, (second[0][:3], first[1], 1.0), third]
    assert core_of(factors, [0.3, 0.3, 0.4])[1] is None


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-3])
def test_copies_are_left_to_qr_and_near_ones_are_exact(noise: float) -> None:
    (first, *_), g = clients(), torch.Generator().manual_seed(9)
    copy = (
        first[0] + noise * torch.randn(first[0].shape, generator=g, dtype=torch.float64),
        first[1] + noise * torch.randn(first[1].shape, generator=g, dtype=torch.float64),
        first[2],
    )
    stack, core = core_of([first, copy], [0.5, 0.5])
    if noise < 1e-4:
        assert core is None
        return
    assert core is not None
    dense = (0.5 * first[2] * (first[1] @ first[0] + copy[1] @ copy[0])).numpy()
    got = (stack.lora_B[0] @ core.left * core.values @ (core.right @ stack.lora_A[0])).numpy()
    assert np.linalg.norm(got - dense) <= 1e-12 * np.linalg.norm(dense)
    exact = np.linalg.svd(dense, compute_uv=False)[: len(core.values)]
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-8 * exact[0])


def test_nothing_to_merge_is_an_empty_core() -> None:
    _, core = core_of(clients(), [0.0, 0.0, 0.0])
    assert core is not None
    assert core.left.shape == (sum(RANKS), 0) and core.right.shape == (0, sum(RANKS))


@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-8, 0.0])
def test_small_singular_values_are_exact_too(smallest: float) -> None:
    """Eigenvectors of the square would lose those below 1e-7."""
    factors, weights = clients(), [1.0, 1.0, smallest]
    stack, core = core_of(factors, weights)
    assert core is not None
    dense = sum(w * s * (B @ A) for w, (A, B, s) in zip(weights, factors, strict=True)).numpy()
    exact = np.linalg.svd(dense, compute_uv=False)[: len(core.values)]
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-10 * exact[0])
    left, right = (stack.lora_B[0] @ core.left).numpy(), (core.right @ stack.lora_A[0]).numpy()
    np.testing.assert_allclose(left.T @ left, np.eye(left.shape[1]), atol=1e-4)
    np.testing.assert_allclose(right @ right.T, np.eye(right.shape[0]), atol=1e-10)
    np.testing.assert_allclose(left * core.values.numpy() @ right, dense, atol=1e-11)


def test_factors_of_odd_sizes_are_not_multiplied_in_float32() -> None:
    factors = clients()
    assert core_of(factors, [0.2, 0.5, 0.3])[1].amplification_to(16) < 100  # type: ignore[union-attr]
    factors = [(A.float(), B.float(), s) for A, B, s in factors]
    A, B, s = factors[0]
    odd = [(A * 1e-30, B * 1e30, s), *factors[1:]]
    assert core_of(odd, [0.2, 0.5, 0.3])[1].amplification_to(1) == float("inf")  # type: ignore[union-attr]


def graded(on_B: float, on_A: float) -> tuple[list, np.ndarray]:  # type: ignore[type-arg]
    """Two clients whose factors, side by side, are that ill-conditioned in a direction that no
    single component shows; and the dense sum of their delta weights."""
    g = torch.Generator().manual_seed(3)

    def basis(n: int, k: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64)).Q

    turn, ones = basis(16, 16), torch.ones(16, dtype=torch.float64)
    by_B, by_A = ones.clone(), ones.clone()
    by_B[-1], by_A[-1] = on_B, on_A
    B, A = basis(OUT, 16) * by_B @ turn, turn.mT @ (by_A[:, None] * basis(IN, 16).mT)
    return [(A[:8], B[:, :8], 1.0), (A[8:], B[:, 8:], 1.0)], (B @ A).numpy()


def test_values_that_their_squares_would_lose() -> None:
    """Singular values of 1 and one of 1e-8, though neither Gram is that ill-conditioned."""
    factors, dense = graded(1e-4, 1e-4)
    stack, core = core_of(factors, [1.0, 1.0])
    assert core is not None
    exact = np.linalg.svd(dense, compute_uv=False)[:16]
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-10)
    got = (stack.lora_B[0] @ core.left * core.values @ (core.right @ stack.lora_A[0])).numpy()
    np.testing.assert_allclose(got, dense, atol=1e-11)


@pytest.mark.parametrize("sides", [(1.0, 1e-4), (1e-4, 1.0), (1.0, 1e-5), (1e-5, 1.0)])
def test_whether_it_can_be_relied_on_is_no_matter_of_how_much_is_wanted(
    sides: tuple[float, float],
) -> None:
    """Of an ill-conditioned side even what is well-conditioned is refused: all values are used."""
    factors, dense = graded(*sides)
    stack = stack_factors([factors], (OUT, IN))
    pair = grams(stack)
    whole, core = (core_svds(pair, [1.0, 1.0], n)[0] for n in (None, 8))
    if min(sides) < 3e-5:
        assert whole is None and core is None and core_svds(pair, [1.0, 1.0], 0)[0] is None
        return
    assert whole is not None and core is not None
    assert core.n_vectors == 8 and torch.equal(core.values, whole.values)
    assert core.amplification_to(8) < 10 < 5e3 < whole.amplification_to(16)
    left, right = (stack.lora_B[0] @ core.left).numpy(), (core.right @ stack.lora_A[0]).numpy()
    np.testing.assert_allclose(left.T @ left, np.eye(8), atol=1e-9)
    np.testing.assert_allclose(right @ right.T, np.eye(8), atol=1e-9)
    exact = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(core.values.numpy(), exact[:16], atol=1e-10)
    rest = np.linalg.norm(dense - left * core.values[:8].numpy() @ right)
    assert rest == pytest.approx(np.linalg.norm(exact[8:]), rel=1e-9)


@pytest.mark.parametrize("d", [1e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("n", [None, 8, 0])
def test_components_that_cancel_beside_large_ones(n: int | None, d: float) -> None:
    """Two components of 0.2 / d leave 0.3 in a direction that neither leading vector has."""
    g = torch.Generator().manual_seed(1)

    def basis(rows: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(rows, 10, generator=g, dtype=torch.float64)).Q

    A, B = basis(IN).mT, basis(OUT)
    far, near = (A[8] + d * A[9])[None], (A[8] - d * A[9])[None]
    factors = [
        (A[:8], B[:, :8], 1.0),
        (far, B[:, 8:9] * 0.2 / d, 1.0),
        (near, 0.3 * B[:, 9:10] - B[:, 8:9] * 0.2 / d, 1.0),
    ]
    pair = grams(stack_factors([factors], (OUT, IN)))
    core = core_svds(pair, [1 / 3] * 3, n)[0]
    dense = sum(lora_B @ lora_A for lora_A, lora_B, _ in factors).numpy() / 3
    if core is None:
        assert d < 1e-4
        return
    exact = np.linalg.svd(dense, compute_uv=False)[: len(core.values)]
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-7 * exact[0])
    assert core.n_vectors == (len(core.values) if n is None else n)


@pytest.mark.parametrize("scaling", [1e-160, 1e-30, 1e30, 1e160, -1.0])
def test_no_scale_is_too_large_or_too_small(scaling: float) -> None:
    factors = [(A, B, s * scaling) for A, B, s in clients()]
    core, usual = core_of(factors, [0.2, 0.5, 0.3])[1], core_of(clients(), [0.2, 0.5, 0.3])[1]
    assert core is not None and usual is not None
    np.testing.assert_allclose(core.values.numpy() / abs(scaling), usual.values.numpy(), rtol=1e-12)
