"""The merge of over-complete stacks against dense float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.maths.factors.factored_svd import FactoredSVD
from clair_cli.maths.factors.stack import FactorStack, stack_factors
from clair_cli.maths.merge.from_grams import leading_svd
from clair_cli.maths.merge.overcomplete import overcomplete_svd

Sum = tuple[FactorStack, list[float]]


def weighted(
    out: int, in_: int, components: int, rank: int | None = None
) -> tuple[Sum, np.ndarray]:
    """Four clients with weights; and the dense sum."""
    g = torch.Generator().manual_seed(out + components)
    B = torch.randn(out, components, generator=g, dtype=torch.float64)
    A = torch.randn(components, in_, generator=g, dtype=torch.float64)
    if rank is not None:  # many components in few directions
        B, A = B[:, :rank] @ torch.randn(rank, components, dtype=torch.float64, generator=g), A
    weights, scaling = [0.5, 2.0, 0.25, 1.0], [1.0, 0.5, -4.0, 1.0]
    clients = list(zip(A.chunk(4), B.chunk(4, dim=1), scaling, strict=True))
    dense = sum(w * s * (b @ a) for w, (a, b, s) in zip(weights, clients, strict=True))
    return (stack_factors([clients], (out, in_)), weights), np.asarray(dense)


def whole(stack: FactorStack, weights: list[float], rank: int = 10_000) -> FactoredSVD:
    """The decomposition as it is written."""
    core = overcomplete_svd(stack, weights, rank)
    return leading_svd(stack, [core], rank, torch.float64)


def sides(found: FactoredSVD) -> tuple[np.ndarray, np.ndarray]:
    """The singular vectors that are known, multiplied out."""
    lora_B, lora_A = found.lora_B.double(), found.lora_A.double()
    left = lora_B if found.left is None else lora_B @ found.left
    right = lora_A if found.right is None else found.right @ lora_A
    return left[0].numpy(), right[0].numpy()


@pytest.mark.parametrize(("out", "in_"), [(300, 40), (40, 300), (64, 64)])
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_it_is_the_best_approximation(out: int, in_: int, rank: int) -> None:
    given, dense = weighted(out, in_, 500)
    core = overcomplete_svd(*given)
    exact = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-7 * exact[0])
    left, right = sides(whole(*given, rank))
    error = np.linalg.norm(dense - left * core.values[:rank].numpy() @ right)
    assert error == pytest.approx(np.linalg.norm(exact[rank:]), rel=1e-9, abs=1e-11 * exact[0])


@pytest.mark.parametrize(("out", "in_"), [(90, 40), (40, 90)])
def test_at_full_rank_it_is_exact_also_where_few_directions_are_used(out: int, in_: int) -> None:
    given, dense = weighted(out, in_, 200, rank=7)
    found = whole(*given)
    left, right = sides(found)
    got = left * found.values[0].numpy() @ right
    assert np.linalg.norm(got - dense) <= 1e-12 * np.linalg.norm(dense)


def test_a_zero_delta_weight() -> None:
    given = stack_factors([[(torch.ones(50, 40), torch.zeros(30, 50), 1.0), None]], (30, 40))
    found = whole(given, [0.5, 0.5])
    assert not found.values.any() and all(np.isfinite(side).all() for side in sides(found))


@pytest.mark.parametrize("size", [1e-36, 1e-10, 1e30])
def test_factors_of_any_size(size: float) -> None:
    g = torch.Generator().manual_seed(1)
    A, B = torch.randn(90, 40, generator=g), torch.randn(60, 90, generator=g)
    dense = (B.double() @ A.double()).numpy()
    given = stack_factors([[(A * size, B / size, 1.0), None]], (60, 40))
    found = whole(given, [1.0, 0.0])
    left, right = sides(found)
    got = left * found.values[0].numpy() @ right
    assert np.linalg.norm(got - dense) <= 1e-5 * np.linalg.norm(dense)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_components_that_cancel_leave_the_rest_as_exact(size: float) -> None:
    """Products in float32 would lose 1e-7 of the components, not of their sum."""
    g = torch.Generator().manual_seed(4)
    B = torch.randn(48, 200, generator=g, dtype=torch.float64)
    A = torch.randn(200, 40, generator=g, dtype=torch.float64)
    loud = size * torch.randn(48, 20, generator=g, dtype=torch.float64)
    B, A = torch.cat([B, loud, -loud], dim=1), torch.cat([A, A[:20], A[:20]])
    core = overcomplete_svd(stack_factors([[(A, B, 1.0)]], (48, 40)), [1.0])
    exact = np.linalg.svd((B @ A).numpy(), compute_uv=False)
    np.testing.assert_allclose(core.values.numpy(), exact, atol=2e-7 * exact[0])
