"""Diffusion transformers' files (Wan, Qwen-Image, Z-Image, Flux), loaded by diffusers' pipelines.

What diffusers makes of the merge of one client is what it makes of that client's own file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import clair_cli
from tests.adapters.test_diffusers import flux
from tests.adapters.test_peft_grid import EPS, Deltas, worst
from tests.hostile import load_cohort

diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

RANK = 2


def wan() -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def qwen() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def z_image() -> Any:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[32, 32, 32],
    )  # fmt: skip


@dataclass(frozen=True)
class Trainer:
    """A trainer's names: the pipeline that loads them, its model, and modules by their names in a
    file, each with its name in diffusers' model."""

    pipeline: str
    model: Callable[[], Any]
    modules: dict[str, str]


def same(prefix: str, *names: str) -> dict[str, str]:
    return {f"{prefix}.{name}": name for name in names}


QWEN = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj")
Z_IMAGE = ("layers.0.attention.to_q", "layers.1.attention.to_out.0", "layers.1.feed_forward.w1")
FLUX = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k")
TRAINERS = {
    "wan, original names": Trainer(
        "WanPipeline",
        wan,
        {
            "diffusion_model.blocks.0.self_attn.q": "blocks.0.attn1.to_q",
            "diffusion_model.blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
            "diffusion_model.blocks.1.ffn.0": "blocks.1.ffn.net.0.proj",
        },
    ),
    "wan": Trainer("WanPipeline", wan, same("transformer", "blocks.0.attn1.to_q",
                                            "blocks.1.ffn.net.2")),
    "wan, feed-forward": Trainer("WanPipeline", wan, same("transformer", "blocks.1.ffn.net.2")),
    "qwen, original names": Trainer("QwenImagePipeline", qwen, same("diffusion_model", *QWEN)),
    "qwen": Trainer("QwenImagePipeline", qwen, same("transformer", *QWEN)),
    "z-image, original names": Trainer("ZImagePipeline", z_image, same("diffusion_model",
                                                                       *Z_IMAGE)),
    "z-image": Trainer("ZImagePipeline", z_image, same("transformer", *Z_IMAGE)),
    "flux": Trainer("FluxPipeline", flux, same("transformer", *FLUX)),
}  # fmt: skip
# Of those, the ones whose loader reads an alpha tensor beside lora_A.
WITH_ALPHAS = [name for name in TRAINERS if "original" in name or name == "flux"]


def write(path: Path, trainer: Trainer, alpha: float | None = None) -> None:
    """A client as the trainer saves it: no config anywhere."""
    torch.manual_seed(1)
    shapes = {name: m.weight.shape for name, m in trainer.model().named_modules()
              if isinstance(m, torch.nn.Linear)}  # fmt: skip
    tensors = {}
    for name, own in trainer.modules.items():
        rows, columns = shapes[own]
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, columns)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, RANK)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def loaded(trainer: Trainer, path: Path) -> Deltas:
    """diffusers' delta weights after `load_lora_weights`, less the pipeline around the model."""
    pipeline, model = getattr(diffusers, trainer.pipeline), trainer.model()
    options = {"return_alphas": True} if trainer.pipeline == "FluxPipeline" else {}
    state, *alphas, metadata = pipeline.lora_state_dict(path, return_lora_metadata=True, **options)
    more = {"network_alphas": alphas[0]} if alphas else {}
    pipeline.load_lora_into_transformer(state, transformer=model, metadata=metadata, **more)
    found = {
        name: layer.get_delta_weight(layer.active_adapters[0]).detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert found.keys() == set(trainer.modules.values())
    return found


@pytest.mark.parametrize("name", TRAINERS)
def test_a_file_without_a_config_is_read_and_the_result_loads(tmp_path: Path, name: str) -> None:
    trainer = TRAINERS[name]
    write(tmp_path / "clients" / "one.safetensors", trainer)
    cohort = load_cohort(tmp_path / "clients")
    assert cohort.rejected == ()
    (adapter,) = cohort.adapters
    assert adapter.format == "diffusers"
    assert {m.scaling for m in adapter.modules.values()} == {1.0}
    wanted = loaded(trainer, tmp_path / "clients" / "one.safetensors")
    for out in ("out.safetensors", "folder"):
        clair_cli.merge(tmp_path / "clients", tmp_path / out, rank="full", allow_undetermined=True)
    assert worst(loaded(trainer, tmp_path / "out.safetensors"), wanted) <= EPS
    weights = tmp_path / "folder" / "pytorch_lora_weights.safetensors"
    assert worst(loaded(trainer, weights), wanted) <= EPS
    assert not clair_cli.verify(tmp_path / "folder", tmp_path / "clients").differences


@pytest.mark.parametrize("keep_alpha", [False, True])
@pytest.mark.parametrize("name", WITH_ALPHAS)
def test_alphas_come_back_as_the_tensors_that_the_loader_reads(
    tmp_path: Path, name: str, keep_alpha: bool
) -> None:
    trainer = TRAINERS[name]
    write(tmp_path / "clients" / "one.safetensors", trainer, 7.0 * RANK)
    wanted = loaded(trainer, tmp_path / "clients" / "one.safetensors")
    out = tmp_path / "out.safetensors"
    clair_cli.merge(
        tmp_path / "clients", out, rank=RANK, allow_undetermined=True, keep_alpha=keep_alpha
    )
    assert worst(loaded(trainer, out), wanted) <= EPS
    names = {n for n in safetensors.torch.load_file(out) if n.endswith(".alpha")}
    assert len(names) == (len(trainer.modules) if keep_alpha else 0)
    (tmp_path / "again").mkdir()
    out.rename(tmp_path / "again" / "out.safetensors")
    (adapter,) = load_cohort(tmp_path / "again").adapters
    assert {m.scaling for m in adapter.modules.values()} == {7.0 if keep_alpha else 1.0}


def test_a_config_in_the_header_stands_by_parts(tmp_path: Path) -> None:
    """Fields without the part's name are none to diffusers, which then knows no target module."""
    write(tmp_path / "clients" / "one.safetensors", TRAINERS["wan"])
    out = tmp_path / "out.safetensors"
    clair_cli.merge(tmp_path / "clients", out, rank=RANK, allow_undetermined=True)
    with safetensors.safe_open(out, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {key.split(".")[0] for key in header} == {"transformer"}


def test_a_language_model_called_transformer_is_none(tmp_path: Path) -> None:
    """Its scale is in a config, and without one it is not known."""
    (tmp_path / "clients").mkdir()
    state = {f"transformer.blocks.0.attn.Wqkv.lora_{s}.weight": torch.ones(2, 2) for s in "AB"}
    safetensors.torch.save_file(state, tmp_path / "clients" / "mpt.safetensors")
    (rejected,) = load_cohort(tmp_path / "clients").rejected
    assert "no adapter config, so the scale is unknown" in rejected.message
