"""PEFT's tensor names, as saved and as dumped from memory: `<module>.lora_A[.<name>].weight`."""

from __future__ import annotations

import re

from clair_cli.adapters.names.parts import TensorPart

PREFIX = "base_model.model."

# Parts that torch.compile, FSDP and activation checkpointing insert anywhere in a name.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?")
_NESTED = re.compile(r"(\.base_layer)+$")  # wrapped more than once: target_parameters


def peft_name(key: str) -> TensorPart | None:
    """One of PEFT's names, or None.

    >>> peft_name("base_model.model.embed.lora_embedding_A.default").module
    'embed'
    """
    prefix, plain = strip_wrappers(key)
    match = _FACTOR.fullmatch(plain) or _EMBEDDING.fullmatch(plain)
    if match is None:
        return None
    module = match["module"]
    if "base_layer" in _NESTED.sub("", module).split("."):
        return None  # a layer inside a wrapped one: multi-head attention
    return TensorPart(
        "peft",
        "A" if match["part"] == "A" else "B",
        module,
        prefix,
        match["adapter"] or "",
        embedding=match.re is _EMBEDDING,
    )


def strip_wrappers(key: str) -> tuple[str, str]:
    """`(prefix, rest)` of a tensor name, without the parts that wrappers insert.

    `module.` (DataParallel, DeepSpeed) is taken off the front only: inside a path it may be
    the model's own (two clients that differ in it alone are matched by `same_modules`).

    >>> strip_wrappers("module.base_model.model._orig_mod.layers.0.q.lora_A.weight")
    ('base_model.model.', 'layers.0.q.lora_A.weight')
    """
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    rest = re.sub(r"^(module\.)+(?=.)", "", ".".join(parts))
    for prefix in (PREFIX, "base_model.module.model.", "base_model.model.module."):
        if rest.startswith(prefix):
            return PREFIX, rest.removeprefix(prefix).removeprefix("module.")
    return "", rest
