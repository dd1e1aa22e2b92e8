"""More rank than a module is wide: the same product with as few components as it can have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.memory import adapters_from_memory
from tests.hostile import config, pair


def adapter(tensors: dict[str, torch.Tensor], rank: int, **more: Any) -> Adapter:
    found = adapters_from_memory({"a": (tensors, config(r=rank, lora_alpha=2 * rank, **more))})
    assert not found.rejected, found.rejected
    return found.adapters[0]


@pytest.mark.parametrize(
    ("shape", "rank", "n"),
    [((6, 8), 6, 6), ((6, 8), 7, 6), ((8, 6), 7, 6), ((1, 1), 1024, 1), ((6, 6), 5, 5)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_components(shape: tuple[int, int], rank: int, n: int, dtype: torch.dtype) -> None:
    tensors = pair("q", rank, shape, dtype=dtype)
    one = adapter(tensors, rank)
    entry = one.modules["q"]
    assert (entry.rank, entry.scaling, entry.components) == (rank, 2.0, n)
    lora_A, lora_B = one.factors("q")
    assert (lora_A.shape, lora_B.shape) == ((n, shape[1]), (shape[0], n))
    stored_A, stored_B = tensors.values()
    exact = stored_B.double() @ stored_A.double()
    assert torch.allclose(lora_B.double() @ lora_A.double(), exact, rtol=1e-13, atol=1e-13)
    if n == rank:
        assert lora_A.dtype == dtype and torch.equal(lora_A, stored_A)


def test_a_convolution_of_more_rank_than_width() -> None:
    tensors = {
        "base_model.model.c.lora_A.weight": torch.randn(9, 2, 3, 3),
        "base_model.model.c.lora_B.weight": torch.randn(4, 9, 1, 1),
    }
    one = adapter(tensors, 9)
    lora_A, lora_B = one.factors("c")
    assert (lora_A.shape, lora_B.shape, one.modules["c"].components) == ((4, 18), (4, 4), 4)


def test_another_gauge_is_the_same_product() -> None:
    tensors = pair("q", 40, (6, 8), dtype=torch.float64)
    gauge = torch.diag(torch.logspace(-30, 30, 40, dtype=torch.float64))
    (key_A, a), (key_B, b) = tensors.items()
    moved = {key_A: gauge @ a, key_B: b @ gauge.inverse()}
    products = []
    for given in (tensors, moved):
        one = adapter(given, 40)
        lora_A, lora_B = one.factors("q")
        products.append(lora_B @ lora_A)
    assert torch.allclose(*products, rtol=1e-12, atol=1e-12)
