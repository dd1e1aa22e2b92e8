"""Tables of what libraries renamed, and the libraries' own tables beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clair_cli.adapters import namings
from clair_cli.adapters.namings import (
    DIFFUSION_TRANSFORMER,
    EXPERTS,
    FAMILIES,
    STABLE_DIFFUSION,
    VISION_LANGUAGE,
    VISION_TOWER,
    marked,
    naming_without_marks,
    translated,
    with_main_part,
)

NEW, LLAVA, QWEN = VISION_LANGUAGE
DIFFUSERS, SGM = STABLE_DIFFUSION

# One module in the three namings of vision-language models; None where it has none.
SAME = [
    ("model.language_model.layers.3.mlp.up", "language_model.model.layers.3.mlp.up",
     "model.layers.3.mlp.up"),
    ("model.language_model.norm", "language_model.model.norm", "model.norm"),
    ("lm_head", "language_model.lm_head", "lm_head"),
    ("model.visual.blocks.0.attn.qkv", None, "visual.blocks.0.attn.qkv"),
    ("model.vision_tower.encoder.q_proj", "vision_tower.encoder.q_proj", None),
    ("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_1", None),
]  # fmt: skip


@pytest.mark.parametrize("row", SAME, ids=[row[0] for row in SAME])
def test_a_module_of_a_vision_language_model(row: tuple[str | None, ...]) -> None:
    for own, name in zip(VISION_LANGUAGE, row, strict=True):
        for other, there in zip(VISION_LANGUAGE, row, strict=True):
            if name is None or own is other:
                continue
            assert translated(name, own, other) == there


def test_marks_and_what_has_none() -> None:
    names = ["model.language_model.a", "language_model.model.a", "model.layers.0.a", "lm_head"]
    assert list(marked(VISION_LANGUAGE, names).items()) == list(
        zip(names, (NEW, LLAVA, QWEN), strict=False)
    )
    # other models that have some of the words
    others = [
        "model.encoder.layers.0.q",
        "model.decoder.layers.0.q",
        "encoder.visual.q",
        "language_model.encoder.layers.0.q",
        "model.layernorm.q",
        "transformer.h.0.attn",
    ]
    for family in FAMILIES:
        assert not marked(family, others)
    assert naming_without_marks("lm_head", VISION_LANGUAGE, LLAVA) is NEW
    assert naming_without_marks("lm_head", VISION_LANGUAGE, QWEN) is None
    assert naming_without_marks("score", VISION_LANGUAGE, LLAVA) is None


TOWER = [
    ("model.vision_tower.encoder.layers.0.q", "model.vision_tower.vision_model.encoder.layers.0.q"),
    ("vision_tower.embeddings.patch", "vision_tower.vision_model.embeddings.patch"),
    ("vision_tower.transformer.layers.0.q", "vision_tower.transformer.layers.0.q"),  # Pixtral
    ("model.language_model.layers.0.q", "model.language_model.layers.0.q"),
]


@pytest.mark.parametrize("row", TOWER, ids=[row[0] for row in TOWER])
def test_a_module_of_a_vision_tower(row: tuple[str, str]) -> None:
    since, before = VISION_TOWER
    assert translated(row[0], since, before) == row[1]
    assert translated(row[1], before, since) == row[0]
    marks = {} if row[0] == row[1] else dict(zip(row, VISION_TOWER, strict=True))
    assert marked(VISION_TOWER, row) == marks


SGM_NAMES = [
    ("unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
     "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("unet.input_blocks.1.0.in_layers.2", "unet.down_blocks.0.resnets.0.conv1"),
    ("unet.input_blocks.3.0.op", "unet.down_blocks.0.downsamplers.0.conv"),
    ("unet.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
    ("unet.middle_block.2.emb_layers.1", "unet.mid_block.resnets.1.time_emb_proj"),
    ("unet.output_blocks.5.2.conv", "unet.up_blocks.1.upsamplers.0.conv"),
    ("unet.output_blocks.8.0.skip_connection", "unet.up_blocks.2.resnets.2.conv_shortcut"),
    ("unet.output_blocks.0.1.transformer_blocks.9.ff.net.0.proj",
     "unet.up_blocks.0.attentions.0.transformer_blocks.9.ff.net.0.proj"),
    ("unet.input_blocks.0.0", "unet.conv_in"), ("unet.out.2", "unet.conv_out"),
    ("unet.label_emb.0.2", "unet.add_embedding.linear_2"),
]  # fmt: skip


def kohya(name: str) -> str:
    return "lora_unet_" + name.removeprefix("unet.").replace(".", "_")


@pytest.mark.parametrize("row", SGM_NAMES, ids=[row[0] for row in SGM_NAMES])
@pytest.mark.parametrize("spell", [str, kohya], ids=["dotted", "kohya"])
def test_a_module_of_stable_diffusion_xl(row: tuple[str, str], spell: type[str]) -> None:
    one, other = map(spell, row)
    assert translated(one, SGM, DIFFUSERS) == other
    assert translated(other, DIFFUSERS, SGM) == one


@pytest.mark.parametrize(
    "name", ["unet.input_blocks.12.1.proj_in", "unet.input_blocks.1.0.in_layers.0",
             "unet.middle_block.3.proj_in", "lora_unet_output_blocks_9_0_in_layers_2"]
)  # fmt: skip
def test_a_block_that_the_table_lacks_has_no_translation(name: str) -> None:
    assert translated(name, SGM, DIFFUSERS) is None
    assert translated("unet.time_embed.1", SGM, DIFFUSERS) == "unet.time_embed.1"  # as it is


def test_fused_layers_have_no_translation() -> None:
    diffusers, authors = DIFFUSION_TRANSFORMER
    names = [
        "lora_unet_double_blocks_0_img_attn_proj",
        "transformer.transformer_blocks.0.attn.to_q",
        "diffusion_model.single_blocks.0.linear2",
        "lora_te1_text_model_encoder_layers_0_q",
    ]
    assert list(marked(DIFFUSION_TRANSFORMER, names).values()) == [authors, diffusers, authors]
    assert translated(names[0], authors, diffusers) is None
    assert translated(names[1], diffusers, authors) is None
    assert translated(names[3], authors, diffusers) == names[3]


def test_experts_fused_or_not() -> None:
    fused, single = EXPERTS
    names = [
        "layers.0.mlp.experts[3]",
        "mlp.experts.base_layer[0]",
        "experts.up[1]",
        "layers.0.mlp.experts.3.up",
        "layers.0.mlp.shared_experts.up",
        "mlp.up[3]",
    ]
    assert list(marked(EXPERTS, names).values()) == [fused, fused, fused, single]
    assert translated(names[3], single, fused) is None


def test_the_part_that_files_of_2023_lack() -> None:
    names = ["down_blocks.0.attn.to_q", "text_encoder.q", "mid_block.attn"]
    assert with_main_part(names) == {n: f"unet.{n}" for n in names if n != "text_encoder.q"}
    assert with_main_part(["down_blocks.0.attn.to_q"]) == {}
    assert with_main_part(["unet.down_blocks.0.to_q", "text_encoder.q"]) == {}
    assert with_main_part(["transformer_blocks.0.to_q", "text_encoder_2.q"]) == {
        "transformer_blocks.0.to_q": "transformer.transformer_blocks.0.to_q"
    }


# The owners' own tables


@pytest.mark.loaders
def test_diffusers_has_the_same_table() -> None:
    """All names of SDXL's U-Net that its converter reads, from kohya's file."""
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    from types import SimpleNamespace

    seen = 0
    for (back, sep), table in namings._SGM.items():
        if back or sep == ".":
            continue
        for own, there in table.items():
            more = "transformer_blocks_0_attn1_to_q" if own.endswith("_attentions_") else ""
            more = "conv" if own.endswith("_2_") else more or "proj_in" if own[-1] == "_" else ""
            key = f"lora_unet_{own}{more}.lora_down.weight"
            state = conversion._maybe_map_sgm_blocks_to_diffusers(
                {key: 0}, SimpleNamespace(layers_per_block=2)
            )
            (mapped,) = state
            found = conversion._convert_unet_lora_key(mapped.removesuffix(".lora_down.weight"))
            assert found.replace(".processor", "").replace(".", "_") == f"{there}{more}", key
            seen += 1
    assert seen > 50


def llava() -> Any:
    import transformers

    return transformers.LlavaForConditionalGeneration, transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SMALL),
        vision_config=transformers.CLIPVisionConfig(
            **{**SMALL, "image_size": 8, "patch_size": 4, "projection_dim": 8}
        ),
    )


def qwen() -> Any:
    import transformers

    rope = {"rope_type": "default", "mrope_section": [1, 0, 1], "rope_theta": 1e4}
    return transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(
        text_config={**SMALL, "rope_scaling": rope, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 8, "num_heads": 2, "hidden_size": 8,
                       "patch_size": 4, "mlp_ratio": 1},
    )  # fmt: skip


SMALL = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
SMALL |= dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
SMALL |= {"num_hidden_layers": 1, "vocab_size": 16, "tie_word_embeddings": False}


@pytest.mark.loaders
@pytest.mark.parametrize(("make", "before"), [(llava, LLAVA), (qwen, QWEN)], ids=["llava", "qwen"])
def test_transformers_loads_a_model_of_the_older_names(
    tmp_path: Path, make: Any, before: namings.Naming
) -> None:
    """Each parameter is found under the name that the table gives it."""
    pytest.importorskip("transformers")
    import safetensors.torch
    import torch

    kind, config = make()
    model = kind(config)
    state, older = model.state_dict(), {}
    for name, tensor in state.items():
        own, _, last = name.rpartition(".")
        there = translated(own, NEW, before)
        assert there is not None
        assert (there != own) == (own != "lm_head" or before is LLAVA)
        there = translated(there, *VISION_TOWER) or ""
        assert ("vision_model" in there) == ("vision_tower" in there)
        older[f"{there}.{last}"] = tensor.clone()
    assert set(marked(VISION_LANGUAGE, state).values()) == {NEW}
    assert set(marked(VISION_LANGUAGE, {n.rpartition(".")[0] for n in older}).values()) == {before}
    config.save_pretrained(tmp_path)
    safetensors.torch.save_file(older, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, found = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name
