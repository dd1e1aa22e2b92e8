"""Tensor names of formats and variants that are known but can't be merged: each gets its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from clair_cli.adapters.names.peft import strip_wrappers
from clair_cli.errors import RejectedClient
from clair_cli.text import first_few

# First match wins, for the file as a whole: what a file says most about itself comes first.
_VARIANTS = (
    ("LoHa", r"\.hada_"),
    ("LoKr", r"\.lokr_"),
    ("Tucker LoCon (lora_mid)", r"\.lora_mid\b"),
    ("LyCORIS", r"\.(oft_|glora_)|\.([ab][12]\.weight|diff|diff_b|w_norm|b_norm|scalar)$"),
    ("DoRA", r"\.(lora_magnitude_vector|dora_scale)\b|\.m$"),
    ("AdaLoRA", r"\.(lora_E|ranknum)\b"),
    ("IA3", r"\.ia3_l\b"),
    ("VeRA", r"\.?vera_(lambda_[bd]|A|B)\b"),
    ("KaSA", r"\.lora_diag\b"),
    ("prompt tuning", r"\bprompt_embeddings\b"),
    ("XLabs LoRA names", r"\.processor\.[^.]*_lora\d+\.(down|up)\.weight$"),
    ("LoRA of multi-head attention", r"\.base_layer\.out_proj\.lora_[AB]\b"),
    ("NeMo's LoRA names (linear_in, linear_out)", r"adapter\.linear_(in|out)\.weight$"),
    ("torchtune's LoRA names (lora_a, lora_b)", r"\.lora_[ab]\.weight$"),
)
_FULL = ("full weights", re.compile(r"\.(weight|bias)$"))  # where there is nothing else
# What helps where a variant is a plain LoRA by other names.
_HINTS = {
    "NeMo": "convert it to PEFT's names first: NeMo exports adapters to Hugging Face's form",
    "torchtune": "give the adapter_model.safetensors that torchtune's checkpointer for Hugging Face"
    " writes, with its config",
}
_COMPILED = tuple((variant, re.compile(pattern)) for variant, pattern in _VARIANTS)


def variants_of(keys: Iterable[str]) -> bool:
    """Whether any of some tensors is of a variant that can't be merged."""
    names = [strip_wrappers(key)[1] for key in keys]
    return any(pattern.search(name) for _, pattern in _COMPILED for name in names)


def refuse(keys: Iterable[str]) -> NoReturn:
    """Name the variant of a file by those of its tensors that are no part of a plain LoRA pair.

    Raises:
        RejectedClient: always; `found` is the variant, the message names the first tensors.
    """
    names = {key: strip_wrappers(key)[1] for key in keys}
    for variant, pattern in (*_COMPILED, _FULL):
        hits = [key for key, plain in names.items() if pattern.search(plain)]
        if hits:
            raise _refusal(f"{variant} not supported", variant, hits)
    raise _refusal("tensors are not LoRA pairs", "unknown tensor names", list(names))


def _refusal(what: str, variant: str, hits: list[str]) -> RejectedClient:
    tensors = "tensor" if len(hits) == 1 else "tensors"
    return RejectedClient(
        f"{what}: {len(hits):,} {tensors}, {first_few(hits)}",
        found=variant,
        expected="LoRA pairs only (lora_A and lora_B, lora_down and lora_up)",
        hint=_HINTS.get(variant.partition("'")[0], ""),
    )
