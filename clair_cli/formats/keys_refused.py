"""Tensor names of formats and variants that are known but can't be merged: each gets its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clair_cli.errors import RejectedClient
from clair_cli.formats.key_map import KeyMap, first_few
from clair_cli.formats.keys_peft import strip_wrappers

# First match wins, for the file as a whole: what a file says most about itself comes first.
_VARIANTS = (
    ("LyCORIS (LoHa, LoKr...)", r"\.(hada_|lokr_|oft_|glora_|lora_mid\b)"),
    ("DoRA", r"\.(lora_magnitude_vector|dora_scale)\b"),
    ("AdaLoRA", r"\.(lora_E|ranknum)\b"),
    ("IA3", r"\.ia3_l\b"),
    ("VeRA", r"\.?vera_(lambda_[bd]|A|B)\b"),
    ("KaSA", r"\.lora_diag\b"),
    ("prompt tuning", r"\bprompt_embeddings\b"),
    ("trainable tokens", r"\b(token_adapter|trainable_tokens)"),
    ("LoRA of an embedding", r"\.lora_embedding_[AB]\b"),
    ("LoRA with a bias (lora_bias)", r"\.lora_B(\.[^.]+)?\.bias$"),
    ("XLabs LoRA names", r"\.processor\.[^.]*_lora\d+\.(down|up)\.weight$"),
    (
        "old diffusers LoRA names",
        r"(_lora|\.lora|\.lora_linear_layer|\.lora_linear)\.(up|down)\.weight$",
    ),
    ("kohya LoRA names", r"^lora_(unet|te\d?|transformer)_|\.lora_(down|up)\.weight$|\.alpha$"),
    ("LoRA on parameters (target_parameters)", r"\.base_layer\.lora_[AB]\b"),
    ("fully trained modules (modules_to_save)", r"\.modules_to_save\b"),
    ("trained biases", r"\.bias$"),
    ("full weights", r"\.(weight|base_layer\.weight)$"),
)
_COMPILED = tuple((variant, re.compile(pattern)) for variant, pattern in _VARIANTS)
_FACTOR = re.compile(r".+\.lora_[AB](\.[^.]+)?\.weight")


def refused_keys(shapes: Mapping[str, tuple[int, ...]]) -> KeyMap | None:
    """Name the variant of a file that is not plain LoRA pairs.

    Args:
        shapes: tensor name to shape, at least one.

    Raises:
        RejectedClient: always; `found` is the variant, the message names the first tensors.
    """
    names = {key: strip_wrappers(key)[1] for key in shapes}
    for variant, pattern in _COMPILED:
        hits = [key for key, plain in names.items() if pattern.search(plain)]
        hits = [k for k in hits if variant != "full weights" or not _FACTOR.fullmatch(names[k])]
        if hits:
            raise _refusal(f"{variant} not supported", variant, hits)
    others = [key for key, plain in names.items() if not _FACTOR.fullmatch(plain)]
    raise _refusal("tensors are not LoRA pairs", "unknown tensor names", others or list(shapes))


def _refusal(what: str, variant: str, hits: list[str]) -> RejectedClient:
    tensors = "tensor" if len(hits) == 1 else "tensors"
    return RejectedClient(
        f"{what}: {len(hits):,} {tensors}, {first_few(hits)}",
        found=variant,
        expected="<module>.lora_A.weight and <module>.lora_B.weight only",
    )
