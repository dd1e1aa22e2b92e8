"""Sides in 16 bits are made by float32 products where those are exact enough, else in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import clair_cli


def clients(amplification: float) -> dict[str, Any]:
    """Three clients whose lora_A differ so little that rounding errors of the products that make
    the written sides are amplified so much."""
    g = torch.Generator().manual_seed(0)
    common, made = torch.randn(4, 200, generator=g), {}
    for k in range(3):
        lora_A = common + 1.01 / amplification * torch.randn(4, 200, generator=g)
        tensors = {"m.lora_A.weight": lora_A, "m.lora_B.weight": torch.randn(300, 4, generator=g)}
        made[f"c{k}"] = tensors, {"r": 4, "lora_alpha": 4}
    return made


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 300.0), ("float16", 37.5)])
def test_amplified_errors_are_those_of_float64(dtype: str, limit: float) -> None:
    """Above the limit the sides are float64's, rounded; below it hardly a number is another."""
    for amplification in (0.8 * limit, 1.2 * limit, 30.0 * limit):
        given = clients(amplification)
        exact, found = (
            clair_cli.merge(given, rank=8, dtype=d, allow_undetermined=True).tensors
            for d in ("float32", dtype)
        )
        assert exact is not None and found is not None
        others = sum(int((found[n] != exact[n].to(found[n].dtype)).sum()) for n in exact)
        assert (others > 0) == (amplification < limit)
        assert others < 0.01 * sum(t.numel() for t in exact.values())
