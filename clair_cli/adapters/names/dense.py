"""Names of tensors that PEFT trains as a whole and saves beside the LoRA (as in 0.21 and older)."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from clair_cli.adapters.names.parts import DenseKey
from clair_cli.adapters.names.peft import strip_wrappers
from clair_cli.errors import RejectedClient
from clair_cli.text import first_few, quoted

_LORA_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.[^.]+)?\.bias")
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.[^.]+\.(?P<rest>[^.]+(?:\.[^.]+)*)")
# In a dump from memory: the base model's own copy beside the trained one.
_ORIGINAL = re.compile(r".+\.(original_module\..+|token_adapter\.base_layer\.weight)")
# PEFT's second copy of a head's bias under `bias="all"`: of a head of one layer, the adapter's name
# is taken off.
_AGAIN = re.compile(
    r"(?P<module>.+)\.modules_to_save\.(?P<rest>weight|bias)"
    r"|(?P<outer>.+)\.modules_to_save\.[^.]+\.(?P<inner>(?:[^.]+\.)+bias)"
)
_PLAIN = re.compile(r".+\.(weight|bias)")


def dense_keys(keys: Sequence[str]) -> tuple[tuple[DenseKey, ...], tuple[str, ...]]:
    """Which tensors, of those that are no part of a LoRA pair, are dense ones.

    Returns:
        The dense tensors, sorted by name, and the keys of all others, without the base model's own
        copies in a dump from memory, which are nobody's training.

    Raises:
        RejectedClient: two tensors of one name.
    """
    found: dict[str, DenseKey] = {}
    others = []
    plain_names = {strip_wrappers(key)[1] for key in keys}
    for key in keys:
        plain = strip_wrappers(key)[1]
        if _ORIGINAL.fullmatch(plain) or _is_again(plain, plain_names):
            continue
        one = _dense_key(key, plain)
        if one is None:
            others.append(key)
        elif one.name in found:
            raise RejectedClient(
                f"two tensors for {quoted(one.name)}: {first_few([found[one.name].key, key])}"
            )
        else:
            found[one.name] = one
    return tuple(found[name] for name in sorted(found)), tuple(others)


def _is_again(plain: str, plain_names: Set[str]) -> bool:
    match = _AGAIN.fullmatch(plain)
    if match is None:
        return False
    module, rest = match["module"] or match["outer"], match["rest"] or match["inner"]
    return f"{module}.{rest}" in plain_names


def _dense_key(key: str, plain: str) -> DenseKey | None:
    if match := _LORA_BIAS.fullmatch(plain):
        module = match["module"]
        return DenseKey(f"{module}.lora_B.bias", key, "lora_bias", module)
    if match := _ROWS.fullmatch(plain):
        return DenseKey(f"{match['module']}.token_adapter.trainable_tokens_delta", key, "rows")
    if match := _SAVED.fullmatch(plain):
        return DenseKey(f"{match['module']}.{match['rest']}", key, "dense")
    return DenseKey(plain, key, "dense") if _PLAIN.fullmatch(plain) else None
