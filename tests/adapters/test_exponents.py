"""Values of float64 that float32 can't hold: no training gives them."""

from __future__ import annotations

import pytest
import torch

from clair_cli.cohort.memory import adapters_from_memory
from tests.hostile import config, pair


def rejected(value: float, dtype: torch.dtype = torch.float64) -> str:
    """Why a client whose lora_B has no larger value than that is rejected, or ""."""
    tensors = {name: tensor.to(dtype) for name, tensor in pair("q", shape=(6, 8)).items()}
    (name,) = (name for name in tensors if "lora_B" in name)
    tensors[name] = torch.full_like(tensors[name], value)
    found = adapters_from_memory({"a": (tensors, config())}).rejected
    return found[0].message if found else ""


@pytest.mark.parametrize("value", [3.4e38, 1e-45, 0.0, 1e-310])
def test_what_float32_holds_is_read(value: float) -> None:
    assert rejected(value) == ""


@pytest.mark.parametrize(("value", "shown"), [(3.5e38, "1e39"), (5e-46, "1e-45"), (1e-300, "1e-")])
def test_what_it_does_not_hold_is_refused(value: float, shown: str) -> None:
    message = rejected(value)
    assert "client 'a'" in message and "lora_B" in message and "float32" in message
    assert shown in message


def test_float32_itself_passes() -> None:
    assert rejected(3.4e38, torch.float32) == rejected(1e-45, torch.float32) == ""


@pytest.mark.parametrize(("alpha", "read"), [(2.4e99, True), (2.6e99, False)])
def test_what_an_update_may_reach(alpha: float, read: bool) -> None:
    """1e100, whatever the scaling makes of the factors; all of these are ones."""
    tensors = {name: torch.ones_like(tensor) for name, tensor in pair("q", shape=(6, 8)).items()}
    found = adapters_from_memory({"a": (tensors, config(lora_alpha=alpha))}).rejected
    assert [("too large to compute with" in entry.message) for entry in found] == [True] * (
        not read
    )
