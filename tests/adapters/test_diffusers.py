"""kohya's and diffusers' files, made and read back by diffusers' own converters and loaders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import clair_cli
from tests.adapters.test_peft_grid import EPS, Deltas, ours, worst
from tests.hostile import load_cohort

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"]
FORMS = ("kohya", "diffusers")


def unet() -> Any:
    """A U-Net of Stable Diffusion's kind, with convolutions of 1x1 and 3x3."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def trained(**fields: Any) -> Any:
    model = unet()
    torch.manual_seed(1)
    given = {"target_modules": TARGETS, "init_lora_weights": False, **fields}
    config = peft.LoraConfig(**given)
    model.add_adapter(config)
    return model


def theirs(model: Any) -> Deltas:
    """diffusers' delta weights by module of the pipeline."""
    return {
        f"unet.{name}": layer.get_delta_weight(layer.active_adapters[0]).detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def save_diffusers(model: Any, path: Path) -> None:
    """As diffusers' training scripts do, the config in the header."""
    state = peft.utils.get_peft_model_state_dict(model)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=diffusers.utils.convert_state_dict_to_diffusers(state),
        unet_lora_adapter_metadata=model.peft_config["default"].to_dict(),
        weight_name=path.name,
    )


def save_kohya(model: Any, path: Path) -> None:
    """With diffusers' converter, and every module's own alpha."""
    state = peft.utils.get_peft_model_state_dict(model)
    named = {f"unet.{name}": tensor for name, tensor in state.items()}
    tensors = diffusers.utils.convert_state_dict_to_kohya(named)
    by_name = {name.replace(".", "_"): m for name, m in model.named_modules()}
    for name in tensors:
        if name.endswith(".alpha"):
            layer = by_name[name.removeprefix("lora_unet_").removesuffix(".alpha")]
            tensors[name] = torch.tensor(layer.lora_alpha["default"])
    safetensors.torch.save_file(tensors, path)


SAVE = {"kohya": save_kohya, "diffusers": save_diffusers}
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 10},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"to_q": 2, "conv1": 3},
        "alpha_pattern": {"to_k": 3, "proj_in": 8},
    },
}


def load(path: Path) -> Any:
    """The file in a fresh U-Net, by the pipeline's own reader and converters."""
    model = unet()
    state, alphas, metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        path, unet_config=model.config, return_lora_metadata=True
    )
    diffusers.StableDiffusionPipeline.load_lora_into_unet(
        state, network_alphas=alphas, unet=model, metadata=metadata
    )
    return model


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("form", FORMS)
def test_files_that_diffusers_makes_are_read(
    tmp_path: Path, form: str, fields: dict[str, Any]
) -> None:
    model = trained(**fields)
    (tmp_path / "clients").mkdir()
    SAVE[form](model, tmp_path / "clients" / "one.safetensors")
    cohort = load_cohort(tmp_path / "clients")
    assert cohort.rejected == ()
    (adapter,) = cohort.adapters
    assert adapter.format == form
    wanted = theirs(model)
    if form == "kohya":
        wanted = {f"lora_{name.replace('.', '_')}": delta for name, delta in wanted.items()}
    assert worst(ours(adapter), wanted) <= EPS


@pytest.mark.parametrize("written", FORMS)
@pytest.mark.parametrize("given", FORMS)
@pytest.mark.parametrize("keep_alpha", [False, True])
def test_files_that_clair_writes_are_read_by_diffusers(
    tmp_path: Path, given: str, written: str, keep_alpha: bool
) -> None:
    model = trained(**FIELDS["patterns"])
    (tmp_path / "clients").mkdir()
    SAVE[given](model, tmp_path / "clients" / "one.safetensors")
    out = tmp_path / "out.safetensors"
    clair_cli.merge(
        tmp_path / "clients",
        out,
        rank="full",
        allow_undetermined=True,
        tensor_names=written,
        keep_alpha=keep_alpha,
    )
    assert worst(theirs(load(out)), theirs(model)) <= EPS
    header = safetensors.safe_open(out, "pt").metadata()
    assert ("ss_network_dim" in header) == (written == "kohya")
    if written == "diffusers":
        assert {key.split(".")[0] for key in json.loads(header["lora_adapter_metadata"])} == {
            "unet"
        }


def test_folders_and_peft_output(tmp_path: Path) -> None:
    """A kohya round as a folder that a pipeline loads, and as a PEFT adapter of the U-Net."""
    model = trained(r=4, lora_alpha=6)
    (tmp_path / "clients").mkdir()
    save_kohya(model, tmp_path / "clients" / "one.safetensors")
    options: dict[str, Any] = {"rank": "full", "allow_undetermined": True}
    clair_cli.merge(tmp_path / "clients", tmp_path / "folder", **options)
    loaded = load(tmp_path / "folder" / "pytorch_lora_weights.safetensors")
    assert worst(theirs(loaded), theirs(model)) <= EPS
    clair_cli.merge(tmp_path / "clients", tmp_path / "peft", tensor_names="peft", **options)
    wrapped = peft.PeftModel.from_pretrained(unet(), tmp_path / "peft")
    found = {
        name.replace("unet.base_model.model.", "unet."): delta
        for name, delta in theirs(wrapped).items()
    }
    assert worst(found, theirs(model)) <= EPS


def test_the_oldest_names(tmp_path: Path) -> None:
    """Attention processors, as diffusers' converter of such files reads them."""
    model = trained(r=4, lora_alpha=4)
    state, old = peft.utils.get_peft_model_state_dict(model), {}
    for name, tensor in state.items():
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            stem = f".{projection}.lora_"
            if ".attn" in name and stem in name:
                end = {"A.weight": "down.weight", "B.weight": "up.weight"}[name.split(stem)[1]]
                link = f".processor.{projection.removesuffix('.0')}_lora."
                old[f"unet.{name.split(stem)[0]}{link}{end}"] = tensor
    (tmp_path / "clients").mkdir()
    safetensors.torch.save_file(old, tmp_path / "clients" / "one.safetensors")
    (adapter,) = load_cohort(tmp_path / "clients").adapters
    wanted = {name: delta for name, delta in theirs(model).items() if ".attn" in name}
    assert worst(ours(adapter), wanted) <= EPS
    converted = diffusers.utils.state_dict_utils.convert_unet_state_dict_to_peft(old)
    assert {n.rsplit(".lora_", 1)[0] for n in converted} == set(adapter.modules)


def flux() -> Any:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )


def load_flux(path: Path) -> Any:
    model = flux()
    state, alphas, metadata = diffusers.FluxPipeline.lora_state_dict(
        path, return_alphas=True, return_lora_metadata=True
    )
    diffusers.FluxPipeline.load_lora_into_transformer(
        state, network_alphas=alphas, transformer=model, metadata=metadata
    )
    return model


@pytest.mark.parametrize("written", ["auto", "kohya"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("keep_alpha", [False, True])
def test_a_transformer_in_place_of_a_unet(
    tmp_path: Path, written: str, header: bool, keep_alpha: bool
) -> None:
    """Flux, with diffusers' config in the header and, as older files, without any."""
    model = flux()
    torch.manual_seed(1)
    alpha = 10 if header else 4
    targets = ["to_q", "to_k", "to_out.0"]
    model.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    )
    fields = model.peft_config["default"].to_dict() if header else None
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path / "clients",
        transformer_lora_layers=peft.utils.get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=fields,
        weight_name="one.safetensors",
    )
    wanted = {f"transformer.{name.removeprefix('unet.')}": d for name, d in theirs(model).items()}
    (adapter,) = load_cohort(tmp_path / "clients").adapters
    assert adapter.format == "diffusers"
    assert worst(ours(adapter), wanted) <= EPS
    clair_cli.merge(
        tmp_path / "clients",
        tmp_path / "out.safetensors",
        rank="full",
        allow_undetermined=True,
        tensor_names=written,
        keep_alpha=keep_alpha,
    )
    assert worst(theirs(load_flux(tmp_path / "out.safetensors")), theirs(model)) <= EPS


def test_a_transformer_of_other_modules_by_its_header(tmp_path: Path) -> None:
    """The config in the header has parts, so that the names are diffusers'."""
    state = {
        "transformer.blocks.0.q.lora_A.weight": torch.ones(2, 8),
        "transformer.blocks.0.q.lora_B.weight": torch.ones(6, 2),
    }
    metadata = {
        "lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 3})
    }
    safetensors.torch.save_file(state, tmp_path / "one.safetensors", metadata)
    (adapter,) = load_cohort(tmp_path).adapters
    assert (adapter.format, adapter.modules["transformer.blocks.0.q"].alpha) == ("diffusers", 3.0)
