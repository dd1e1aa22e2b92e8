"""Fused experts' tensors: slices of whole tensors, which are read once for all experts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.experts import KEPT_TENSORS, ExpertTensors, joined
from clair_cli.adapters.fused_output import FusedPair
from clair_cli.cohort.memory import TensorsInMemory, adapters_from_memory
from clair_cli.formats.safetensors.source import tensor_of

P = "base_model.model."
RANK, EXPERTS, LAYERS = 3, 5, 3
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_parameters": ["experts.w"]}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g, found = torch.Generator().manual_seed(0), {}
    for layer in range(LAYERS):
        stem = f"{P}{layer}.experts.lora_"
        found[f"{stem}A.weight"] = torch.randn(RANK * EXPERTS, 8, generator=g).to(dtype)
        found[f"{stem}B.weight"] = torch.randn(6, RANK * EXPERTS, generator=g).to(dtype)
    return found


def read(state: dict[str, torch.Tensor]) -> Adapter:
    (adapter,) = adapters_from_memory({"c": (state, CONFIG)}).adapters
    return adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_experts_are_pefts(dtype: torch.dtype) -> None:
    """`ParamWrapper.get_delta_weight` in one line."""
    state = tensors(dtype)
    adapter = read(state)
    assert len(adapter.modules) == LAYERS * EXPERTS
    for layer in range(LAYERS):
        A, B = (state[f"{P}{layer}.experts.lora_{side}.weight"].double() for side in "AB")
        whole = torch.einsum(
            "ore,eri->eoi", B.reshape(6, RANK, EXPERTS), A.reshape(EXPERTS, RANK, 8)
        )
        for e in range(EXPERTS):
            lora_A, lora_B = adapter.factors(f"{layer}.experts[{e}]")
            assert lora_A.dtype == dtype and lora_A.shape == (RANK, 8)
            assert torch.allclose(lora_B.double() @ lora_A.double(), whole[e])


@pytest.mark.parametrize("fusion", ["parameter", "stacked"])
def test_joined_is_the_inverse(fusion: Any) -> None:
    g = torch.Generator().manual_seed(0)
    each = [(torch.randn(RANK, 8, generator=g), torch.randn(6, RANK, generator=g))
            for _ in range(EXPERTS)]  # fmt: skip
    lora_A, lora_B = joined(fusion, each)
    state = {f"{P}0.experts.lora_A.weight": lora_A, f"{P}0.experts.lora_B.weight": lora_B}
    adapter = read(state)
    for e, (one, other) in enumerate(each):
        found = adapter.factors(f"0.experts[{e}]")
        assert torch.equal(found[0], one) and torch.equal(found[1], other)


@pytest.mark.parametrize("fusion", ["parameter", "stacked"])
def test_the_empty_tensors_are_like_those_written(fusion: Any) -> None:
    members = {"m[0]": 0, "m[2]": 2}
    pair = FusedPair("m", ("A", "B"), fusion, EXPERTS, members)
    factors = {m: (torch.zeros(RANK, 8), torch.zeros(6, RANK)) for m in members}
    written = pair.tensors(factors)
    for device in ("cpu", "meta"):
        like = [tensor.half().to(device) for tensor in factors["m[0]"]]
        empty = pair.empty(*like)
        assert {k: t.shape for k, t in empty.items()} == {k: t.shape for k, t in written.items()}
        assert {(t.dtype, t.device.type) for t in empty.values()} == {(torch.float16, device)}


def test_a_whole_tensor_is_read_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    real = TensorsInMemory.raw

    def counted(self: TensorsInMemory, *keys: str) -> memoryview:
        reads.update(keys)
        return real(self, *keys)

    monkeypatch.setattr(TensorsInMemory, "raw", counted)
    adapter = read(tensors())
    assert isinstance(adapter.source, ExpertTensors)
    for module in adapter.modules:
        adapter.factors(module)
    assert set(reads.values()) == {1} and len(reads) == 2 * LAYERS
    assert len(adapter.source._kept) == KEPT_TENSORS
    assert adapter.source.kept_bytes == 4 * RANK * EXPERTS * (8 + 8 + 8 + 6)  # the largest four
    adapter.factors("0.experts[0]")  # it was dropped
    assert reads[f"{P}0.experts.lora_A.weight"] == 2


def test_content_tells_experts_apart() -> None:
    """Adapters that differ in the order of two experts have other content; equal ones the same."""
    state = tensors()
    name = f"{P}0.experts.lora_A.weight"
    swapped = state | {name: state[name].reshape(EXPERTS, RANK, 8).flip(0).reshape(-1, 8)}
    assert read(state).content() == read(dict(state)).content()
    assert read(state).content() != read(swapped).content()
    entries = read(state).source.tensors
    assert len({entries[f"{name}[{e}]"].digest for e in range(EXPERTS)}) == EXPERTS


def test_an_expert_that_the_caller_changed_is_told() -> None:
    state = tensors()
    adapter = read(state)
    state[f"{P}1.experts.lora_B.weight"][0, 0] += 1.0
    adapter.factors("0.experts[1]")
    with pytest.raises(Exception, match="changed while reading"):
        adapter.factors("1.experts[0]")


def test_values_that_are_not_finite_are_in_the_whole_tensor() -> None:
    state = tensors()
    state[f"{P}1.experts.lora_B.weight"][0, 0] = float("nan")
    (rejected,) = adapters_from_memory({"c": (state, CONFIG)}).rejected
    assert f"'{P}1.experts.lora_B.weight' has 1 NaN" in rejected.message


@pytest.mark.parametrize(
    ("shape_A", "shape_B", "modules"),
    [
        ((4, 2, 8), (4, 6, 2), 4),  # four experts of rank 2
        ((4, 1, 8), (4, 6, 1), 4),  # of rank 1
        ((4, 1, 8), (4, 4, 1), 1),  # a convolution of rank 4
        ((4, 5, 3), (6, 4, 1), 1),
        ((4, 8, 2), (4, 2, 6), 0),  # stacked the other way around
        ((4, 2, 8), (3, 6, 2), 0),
    ],
)
def test_stacked_experts_and_convolutions(
    shape_A: tuple[int, ...], shape_B: tuple[int, ...], modules: int
) -> None:
    state = {f"{P}w.lora_A.weight": torch.ones(shape_A), f"{P}w.lora_B.weight": torch.ones(shape_B)}
    rank = shape_A[1] if modules == 4 else shape_A[0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    cohort = adapters_from_memory({"c": (state, config)})
    assert [len(adapter.modules) for adapter in cohort.adapters] == ([modules] if modules else [])
    assert bool(modules) or "stacked experts" in cohort.rejected[0].message


def test_slices_are_tensors_of_the_source() -> None:
    adapter = read(tensors())
    name = f"{P}2.experts.lora_B.weight[4]"
    whole = tensors()[f"{P}2.experts.lora_B.weight"].numpy()
    assert np.array_equal(tensor_of(adapter.source, name).numpy(), whole[:, 4::EXPERTS])
    assert torch.equal(tensor_of(adapter.source, name[:-3]), torch.from_numpy(whole))
