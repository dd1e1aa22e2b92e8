"""The merge on the smaller side of a layer against dense float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.maths.lowrank import Product
from clair_cli.maths.thin import Thin
from clair_cli.maths.wide_merge import wide_core, wide_thin


def product(out: int, in_: int, terms: int, rank: int | None = None) -> Product:
    g = torch.Generator().manual_seed(out + terms)
    B = torch.randn(out, terms, generator=g, dtype=torch.float64)
    A = torch.randn(terms, in_, generator=g, dtype=torch.float64)
    if rank is not None:  # many terms in few directions
        B, A = B[:, :rank] @ torch.randn(rank, terms, dtype=torch.float64, generator=g), A
    return Product(B, A)


def sides(found: Thin) -> tuple[np.ndarray, np.ndarray]:
    """The singular vectors that are known, multiplied out."""
    left = found.lora_B if found.left is None else found.lora_B @ found.left
    right = found.lora_A if found.right is None else found.right @ found.lora_A
    return left.numpy(), right.numpy()


@pytest.mark.parametrize(("out", "in_"), [(300, 40), (40, 300), (64, 64)])
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_it_is_the_best_approximation(out: int, in_: int, rank: int) -> None:
    given = product(out, in_, 500)
    dense = (given.lora_B @ given.lora_A).numpy()
    core = wide_core(given)
    exact = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(core.values.numpy(), exact, atol=1e-7 * exact[0])
    left, right = sides(wide_thin(given, core.leading(rank)))
    error = np.linalg.norm(dense - left * core.values[:rank].numpy() @ right)
    assert error == pytest.approx(np.linalg.norm(exact[rank:]), rel=1e-9, abs=1e-11 * exact[0])


@pytest.mark.parametrize(("out", "in_"), [(90, 40), (40, 90)])
def test_at_full_rank_it_is_exact_also_where_few_directions_are_used(out: int, in_: int) -> None:
    given = product(out, in_, 200, rank=7)
    dense = (given.lora_B @ given.lora_A).numpy()
    found = wide_thin(given, wide_core(given))
    left, right = sides(found)
    got = left * found.values.numpy() @ right
    assert np.linalg.norm(got - dense) <= 1e-12 * np.linalg.norm(dense)


def test_a_zero_update() -> None:
    given = Product(torch.zeros(30, 50, dtype=torch.float64), product(30, 20, 50).lora_A)
    found = wide_thin(given, wide_core(given))
    assert not found.values.any() and all(np.isfinite(side).all() for side in sides(found))
