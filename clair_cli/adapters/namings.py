"""Namings of one model: tables of what libraries renamed between versions, or name differently.

A naming has a pattern that marks a path as one of it, and a way to and from the paths that all
namings of its family have in common. Where no such way exists (fused layers), both are None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

# A module's name: what stands in front of a path in a pipeline's part, and the path.
_PART = re.compile(r"((?:unet|transformer|diffusion_model)\.|lora_(?:unet|transformer)_|)(.+)")


Translate = Callable[[str, str], str | None]


@dataclass(frozen=True)
class Naming:
    """One naming of a family's modules.

    Attributes:
        title: whose names they are, for sentences.
        marks: matches the beginning of a path that has a name of this naming alone.
        to_common, from_common: translate a path, whose names "." or "_" separates (kohya); None for
            a path that has no counterpart. They are None themselves where layers of one naming are
            parts of another's.
    """

    title: str
    marks: re.Pattern[str]
    to_common: Translate | None = None
    from_common: Translate | None = None


Family = tuple[Naming, ...]
"""Namings of one model, the newest first."""

# Vision-language models of transformers: (prefix, common prefix); a name without a dot at the end
# is a whole path. Before 4.52 two kinds: a whole language model inside (LLaVA, Gemma 3, Mistral 3,
# PaliGemma...), or a language model with a vision tower added (Qwen2-VL, Qwen2.5-VL).
# Source: transformers 4.52 and later, `_checkpoint_conversion_mapping` of
# LlavaForConditionalGeneration (models/llava), LlavaNextForConditionalGeneration (image_newline),
# VideoLlavaForConditionalGeneration (image_tower, video_tower), MllamaForConditionalGeneration
# (vision_model) and Qwen2VLForConditionalGeneration (models/qwen2_vl); conversion_mapping.py of
# transformers 5 has the same rows.
_TEXT, _HEAD, _VISION = "text.", "head", "vision."
_TOWERS = ("vision_tower.", "image_tower.", "video_tower.", "audio_tower.", "vision_model.")
_BESIDE = (*_TOWERS, "multi_modal_projector.")
_SINCE_4_52 = {
    "model.language_model.": _TEXT,
    "lm_head": _HEAD,
    "model.visual.": _VISION,
    **{f"model.{name}": name for name in _BESIDE},
}
_LLAVA_BEFORE = {
    "language_model.model.": _TEXT,
    "language_model.lm_head": _HEAD,
    **{name: name for name in _BESIDE},
}
_QWEN_BEFORE = {
    **{f"model.{name}": f"{_TEXT}{name}" for name in ("layers.", "embed_tokens", "norm")},
    "lm_head": _HEAD,
    "visual.": _VISION,
}


def _as_it_is(path: str, sep: str) -> str:
    return path


def _exchanged(path: str, sep: str, prefixes: Mapping[str, str]) -> str | None:
    """The path with its longest prefix of a table replaced; None if it has none of them."""
    for old in sorted(prefixes, key=len, reverse=True):
        if path == old or (old.endswith(".") and path.startswith(old)):
            return prefixes[old] + path[len(old) :]
    return None


def _by_prefix(title: str, marks: str, prefixes: Mapping[str, str]) -> Naming:
    back = {common: own for own, common in prefixes.items()}
    return Naming(
        title, re.compile(marks), partial(_exchanged, prefixes=prefixes),
        partial(_exchanged, prefixes=back),
    )  # fmt: skip


VISION_LANGUAGE: Family = (
    _by_prefix(
        "transformers 4.52",
        rf"model\.(language_model\.|visual\.|{'|'.join(map(re.escape, _BESIDE))})",
        _SINCE_4_52,
    ),
    _by_prefix(
        "transformers before 4.52",
        rf"language_model\.(model\.|lm_head$)|{'|'.join(map(re.escape, _BESIDE))}",
        _LLAVA_BEFORE,
    ),
    _by_prefix(
        "transformers before 4.52", r"visual\.|model\.(layers\.|embed_tokens$|norm$)", _QWEN_BEFORE
    ),
)


# Vision towers of CLIP and SigLIP: before transformers 5 the model was inside a wrapper.
# Source: transformers 5, conversion_mapping.py, "CLIPVisionModel" (`prefix_to_remove`).
_TOWER = r"((?:model\.)?(?:vision|image|video)_tower\.)"
_WRAPPED = re.compile(rf"{_TOWER}vision_model\.")
_BARE = re.compile(
    rf"{_TOWER}(?=(?:encoder|embeddings|head|pre_layrnorm|post_layernorm)(?:\.|$))"  # CLIP's word
)


def _without_wrapper(path: str, sep: str) -> str:
    return _WRAPPED.sub(r"\1", path, count=1) if _WRAPPED.match(path) else path


def _with_wrapper(path: str, sep: str) -> str:
    return _BARE.sub(r"\1vision_model.", path, count=1) if _BARE.match(path) else path


VISION_TOWER: Family = (
    Naming("transformers 5", _BARE, _as_it_is, _as_it_is),
    Naming("transformers before 5", _WRAPPED, _without_wrapper, _with_wrapper),
)


# Stable Diffusion XL's U-Net: Stability's names (sgm, in kohya's and ComfyUI's files) to diffusers'
# (which are the common ones). Blocks of two residual layers, as in all of SDXL's configs.
# Source: diffusers, loaders/lora_conversion_utils.py: `_maybe_map_sgm_blocks_to_diffusers` (blocks)
# and `_convert_unet_lora_key` (layers in them, and those outside blocks).
def _sgm_blocks() -> dict[str, tuple[str, str]]:
    """Stability's block to diffusers' and the kind of layer."""
    found = {}
    for i in range(9):
        block, layer = divmod(i, 3)
        if layer < 2:
            found[f"input_blocks.{i + 1}.0"] = (f"down_blocks.{block}.resnets.{layer}", "resnet")
            found[f"input_blocks.{i + 1}.1"] = (f"down_blocks.{block}.attentions.{layer}", "as is")
        else:
            found[f"input_blocks.{i + 1}.0"] = (f"down_blocks.{block}.downsamplers.0", "down")
        found[f"output_blocks.{i}.0"] = (f"up_blocks.{block}.resnets.{layer}", "resnet")
        found[f"output_blocks.{i}.1"] = (f"up_blocks.{block}.attentions.{layer}", "as is")
        if layer == 2:
            found[f"output_blocks.{i}.2"] = (f"up_blocks.{block}.upsamplers.0", "as is")
    for i, inner in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        found[f"middle_block.{i}"] = (f"mid_block.{inner}", "as is" if i == 1 else "resnet")
    return found


_SGM_LAYERS = {
    "as is": {},
    "down": {"op": "conv"},
    "resnet": {
        "in_layers.2": "conv1",
        "out_layers.3": "conv2",
        "emb_layers.1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    },
}
_SGM_ALONE = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}


def _sgm_table(*, back: bool, sep: str) -> dict[str, str]:
    """Whole paths and prefixes of paths, which end in `sep`, of the one naming to the other's."""
    table = dict(_SGM_ALONE)
    for sgm, (diffusers, kind) in _sgm_blocks().items():
        layers = _SGM_LAYERS[kind]
        if not layers:
            table[f"{sgm}."] = f"{diffusers}."
        table |= {f"{sgm}.{one}": f"{diffusers}.{other}" for one, other in layers.items()}
    spelt = {one.replace(".", sep): other.replace(".", sep) for one, other in table.items()}
    return {other: one for one, other in spelt.items()} if back else spelt


_SGM = {(back, sep): _sgm_table(back=back, sep=sep) for back in (False, True) for sep in "._"}


def _sgm_path(path: str, sep: str, *, back: bool) -> str | None:
    """A path of Stability's U-Net in diffusers' naming, or the other way."""
    table = _SGM[back, sep]
    if path in table:
        return table[path]
    parts = path.split(sep)
    prefixes = (sep.join(parts[:n]) + sep for n in range(len(parts) - 1, 0, -1))
    found = next((prefix for prefix in prefixes if prefix in table), None)
    return None if found is None else table[found] + path[len(found) :]


STABLE_DIFFUSION: Family = (
    Naming(
        "diffusers", re.compile(r"(down_blocks|mid_block|up_blocks)[._]"), _as_it_is, _as_it_is
    ),
    Naming(
        "Stability's code", re.compile(r"(input_blocks|middle_block|output_blocks)[._]"),
        partial(_sgm_path, back=False), partial(_sgm_path, back=True),
    ),
)  # fmt: skip

# Flux, HunyuanVideo, Stable Diffusion 3: query, key and value (in Flux's single blocks the first
# layer of the MLP too) are one layer in their authors' code and three or four in diffusers, so that
# a delta weight of the one is no delta weight of the other.
# Source: diffusers, loaders/lora_conversion_utils.py: `_convert_kohya_flux_lora_to_diffusers` and
# `_convert_hunyuan_video_lora_to_diffusers`; scripts/convert_sd3_to_diffusers.py (joint_blocks).
DIFFUSION_TRANSFORMER: Family = (
    Naming("diffusers", re.compile(r"(single_)?transformer_blocks[._]")),
    Naming("the model's authors", re.compile(r"(double_blocks|single_blocks|joint_blocks)[._]")),
)

# Experts of a mixture: in transformers 5 one parameter for all of a layer (`experts.gate_up_proj`),
# before a module for each, with a gate and an up projection of their own.
# Source: transformers 5, conversion_mapping.py, "qwen2_moe" (`MergeModulelist`, `Concatenate`).
EXPERTS: Family = (
    Naming("transformers 5 (fused experts)", re.compile(r"(?=.*\bexperts\b).*\[\d+\]$")),
    Naming("transformers before 5 (experts one by one)", re.compile(r".*\bexperts\.\d+(\.|$)")),
)

FAMILIES: tuple[Family, ...] = (
    VISION_LANGUAGE, VISION_TOWER, STABLE_DIFFUSION, DIFFUSION_TRANSFORMER, EXPERTS,
)  # fmt: skip

# Paths in a pipeline's main model, by the part that they are in.
_MAIN = (
    ("unet", re.compile(r"(down_blocks|mid_block|up_blocks)\.")),
    ("transformer", re.compile(r"(single_)?transformer_blocks\.")),
)
_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.")


def marked(family: Family, names: Iterable[str]) -> dict[str, Naming]:
    """The names that have the marks of one of a family's namings, with that naming."""
    found = {}
    for name in names:
        path = _split(name)[1]
        naming = next((n for n in family if n.marks.match(path)), None)
        if naming is not None:
            found[name] = naming
    return found


def naming_without_marks(name: str, family: Family, target: Naming) -> Naming | None:
    """The newest of the other namings that has the name and translates it; None if none does."""
    others = (naming for naming in family if naming is not target)
    return next((n for n in others if translated(name, n, target) not in (None, name)), None)


def translated(name: str, own: Naming, other: Naming) -> str | None:
    """A module's name in another naming of its family. A path that the table does not have is the
    same in both, unless its marks say that it is of the one: then None."""
    front, path = _split(name)
    sep = "_" if front.startswith("lora_") else "."
    common = own.to_common(path, sep) if own.to_common is not None else None
    there = other.from_common(common, sep) if other.from_common is not None and common else None
    if there is None:
        return None if own.marks.match(path) else name
    return front + there


def with_main_part(names: Sequence[str]) -> dict[str, str]:
    """Names with the part of the pipeline in front, in a file that has it before its text encoders
    only: diffusers wrote the U-Net's names without it before 0.16.

    Source: diffusers, `LoraLoaderMixin.load_lora_weights` (loaders.py of 0.16): names without a
    part are the U-Net's.

    >>> with_main_part(["mid_block.attn", "text_encoder.q"])
    {'mid_block.attn': 'unet.mid_block.attn'}
    """
    if not any(name.startswith(_ENCODERS) for name in names):
        return {}
    return {name: f"{part}.{name}" for name in names for part, path in _MAIN if path.match(name)}


def _split(name: str) -> tuple[str, str]:
    match = _PART.fullmatch(name)
    return (match[1], match[2]) if match else ("", name)
