"""Tensor names to LoRA pairs, whatever tool wrote the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from clair_cli.adapters.names.dense import dense_keys
from clair_cli.adapters.names.diffusers import diffusers_name
from clair_cli.adapters.names.kohya import kohya_name
from clair_cli.adapters.names.mlx import mlx_name
from clair_cli.adapters.names.parts import Format, KeyMap, KeyPair, TensorPart
from clair_cli.adapters.names.peft import PREFIX, peft_name
from clair_cli.adapters.names.refused import refuse, variants_of
from clair_cli.errors import RejectedClient
from clair_cli.text import first_few, quoted, some_of

READERS: tuple[Callable[[str], TensorPart | None], ...] = (
    peft_name,
    diffusers_name,
    kohya_name,
    mlx_name,
)
"""Readers of a tensor name, in the order in which they are asked; None means another format."""

DIFFUSION_MODEL = "diffusion_model"
"""What the original code of diffusion transformers, and ComfyUI, put in front of the denoiser's
modules (Wan, Z-Image, Qwen-Image, Flux trainers); diffusers converts such files as it loads them:
the `_convert_non_diffusers_*` functions of loaders/lora_conversion_utils.py."""

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", DIFFUSION_MODEL)
"""Parts of a pipeline that begin a module's path in its files."""

TRANSFORMER = "transformer"
"""A further part, and a module of some language models: it is a part where it holds modules that
only diffusers' transformers have, or where the config in the header has parts."""

_TRANSFORMER_BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")
DENOISER = re.compile(
    r"\.(to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj)$|\.(ff|ffn|ff_context)\.net\.\d+\b"
)
"""Projections of diffusers' attention (models/attention_processor.py) and its feed-forward layers
(models/attention.py); language models have q_proj, c_attn, Wqkv, query_key_value and the like."""

_UNMIXED: tuple[Format, ...] = ("kohya", "mlx")

PartTable = dict[tuple[str, str], tuple[str, TensorPart]]  # (module, part) to (tensor name, part)


def pair_keys(shapes: Mapping[str, tuple[int, ...]]) -> KeyMap:
    """Find the pair of every module.

    Args:
        shapes: tensor name to shape.

    Raises:
        RejectedClient: no tensors, a format or variant that can't be merged, or a broken one:
            a factor without the other, twice, or of a second adapter.
    """
    if not shapes:
        raise RejectedClient("holds no tensors", found="0 tensors", expected="LoRA pairs")
    parts = {key: _part(key) for key in shapes}
    unknown = [key for key, part in parts.items() if part is None]
    if len(unknown) == len(parts) or variants_of(unknown):
        refuse(unknown)
    dense, others = dense_keys(unknown)
    if others:
        refuse(others)
    found = _by_module({key: part for key, part in parts.items() if part is not None})
    _check_alone(found)
    factors = {key: part for key, part in found.values() if part.part in "AB"}
    _check_one({p.adapter: k for k, p in factors.items()}, "two adapters in one file")
    prefixes = {part.prefix: key for key, part in found.values()}
    _check_one(prefixes, f"some tensor names begin with {PREFIX!r} and some do not")
    pairs = _pairs(found)
    prefix, format_ = next(iter(prefixes)), _format(factors)
    if dense and format_ != "peft":
        refuse(one.key for one in dense)
    without = sorted(pair.module for pair in pairs if pair.key_alpha is None)
    old = any(part.format in ("kohya", "diffusers") for part in factors.values())
    inside = not without or old or (format_ == "diffusers" and not prefix)
    return KeyMap(prefix, pairs, format_, inside, dense=dense)


def _part(key: str) -> TensorPart | None:
    for read in READERS:
        part = read(key)
        if part is not None:
            return part
    return None


def _by_module(parts: Mapping[str, TensorPart]) -> PartTable:
    found: PartTable = {}
    for key, part in parts.items():
        place = (part.module, part.part)
        if place in found:
            what = "alpha" if part.part == "alpha" else f"lora_{part.part}"
            raise RejectedClient(
                f"two tensors for one {what}: {first_few([found[place][0], key])}",
                module=part.module,
            )
        found[place] = (key, part)
    return found


def _check_alone(found: PartTable) -> None:
    """Refuse an alpha of a module without factors."""
    alone = [
        key
        for (module, _), (key, _) in found.items()
        if (module, "A") not in found and (module, "B") not in found
    ]
    if alone:
        raise RejectedClient(
            f"alpha without the factors it scales: {first_few(alone)}",
            found="alpha alone",
            expected="lora_down and lora_up beside it",
        )


def _check_one(found: Mapping[str, str], what: str) -> None:
    if len(found) > 1:
        both = sorted(found.items())
        names = some_of([f"{quoted(name)} ({quoted(key)})" for name, key in both])
        raise RejectedClient(f"{what}: {names}", found=names, expected="one")


def _pairs(found: PartTable) -> tuple[KeyPair, ...]:
    pairs = []
    for module in sorted({module for module, part in found if part in "AB"}):
        for side, other in (("A", "B"), ("B", "A")):
            if (module, side) not in found:
                raise RejectedClient(
                    f"lora_{other} has no lora_{side} beside it "
                    f"({quoted(found[module, other][0])})",
                    module=module,
                    found=f"lora_{other} alone",
                    expected="lora_A and lora_B",
                )
        (key_A, part_A), (key_B, part_B) = found[module, "A"], found[module, "B"]
        if (part_A.embedding, part_A.format) != (part_B.embedding, part_B.format):
            raise RejectedClient(
                f"its factors have names of two kinds: {quoted(key_A)} and {quoted(key_B)}",
                module=module,
            )
        alpha = found.get((module, "alpha"))
        key_alpha = None if alpha is None else alpha[0]
        pairs.append(KeyPair(module, key_A, key_B, key_alpha, part_A.embedding))
    return tuple(pairs)


def _format(factors: Mapping[str, TensorPart]) -> Format:
    """diffusers' files mix their own names with PEFT's; nobody mixes kohya's or mlx-lm's."""
    formats: dict[str, str] = {part.format: key for key, part in factors.items()}
    for alone in _UNMIXED:
        if alone in formats:
            _check_one(formats, "two formats in one file")
            return alone
    if "diffusers" in formats:
        return "diffusers"
    firsts = {part.prefix + part.module.split(".")[0] for part in factors.values()}
    if firsts - {*COMPONENTS, TRANSFORMER}:
        return "peft"
    blocks = any(
        part.module.startswith(_TRANSFORMER_BLOCKS) or DENOISER.search(part.module)
        for part in factors.values()
    )
    return "diffusers" if blocks or firsts != {TRANSFORMER} else "peft"
