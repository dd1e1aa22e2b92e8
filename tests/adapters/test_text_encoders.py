"""Text encoders of a pipeline, loaded by diffusers, whatever version of transformers named them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import clair_cli
from tests.adapters.test_peft_grid import EPS, Deltas, worst

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
MODULES = [f"encoder.layers.{n}.self_attn.{name}" for n in (0, 1) for name in PROJECTIONS]
WIDTH, RANK = 12, 2


def clip() -> Any:
    torch.manual_seed(0)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            vocab_size=8, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def write(path: Path, front: str) -> None:
    """A client of two encoders, without a config, as scripts saved it before there was one."""
    torch.manual_seed(1)
    tensors = {}
    for part in ("text_encoder", "text_encoder_2"):
        for module in MODULES:
            name = f"{part}.{front}{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH)
            tensors[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK)
    path.parent.mkdir()
    safetensors.torch.save_file(tensors, path)


def loaded(path: Path, part: str) -> Deltas:
    pipeline, model = diffusers.StableDiffusionXLPipeline, clip()
    state, alphas, metadata = pipeline.lora_state_dict(path, return_lora_metadata=True)
    pipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=model, prefix=part, metadata=metadata
    )
    return {
        name.removeprefix("text_model."): layer.get_delta_weight(layer.active_adapters[0]).detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.mark.parametrize("front", ["", "text_model."])
@pytest.mark.parametrize("names", ["diffusers", "kohya"])
@pytest.mark.parametrize("how", ["merge", "keep alpha", "convert"])
def test_both_encoders_of_a_result_load(tmp_path: Path, front: str, names: Any, how: str) -> None:
    client, out = tmp_path / "clients" / "one.safetensors", tmp_path / "out.safetensors"
    write(client, front)
    if how == "convert":
        clair_cli.convert(client, out, names)
    else:
        clair_cli.merge(
            client.parent, out, tensor_names=names, keep_alpha=how == "keep alpha", rank="full",
            allow_undetermined=True,
        )  # fmt: skip
    for part in ("text_encoder", "text_encoder_2"):
        wanted = loaded(client, part)
        assert wanted.keys() == set(MODULES)
        assert worst(loaded(out, part), wanted) <= EPS
    if names == "kohya":
        keys = safetensors.torch.load_file(out)
        assert all(key.startswith(("lora_te1_text_model_", "lora_te2_text_model_")) for key in keys)
