"""`init_lora_weights`: the inits that only clients of the same one may be merged under.

Most of them changed the base weights, so that a delta weight refers to the changed base and not to
the published one (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA); EVA leaves the base and starts from the
client's own data. An unknown name is taken for one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clair_cli.errors import RejectedClient
from clair_cli.text import quoted

# The factors start elsewhere, but the base model stays as it was.
_HARMLESS = frozenset(("gaussian", "orthogonal", "mica"))
_FROM_DATA = frozenset(("eva",))


# Where one of these fields is not empty, the delta weight is not scaling * B @ A alone.
_REFUSED_FIELDS = {
    "use_dora": "DoRA",
    "layer_replication": "layer replication",
    "kasa_config": "KaSA",
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "use_qalora": "QALoRA",
    "arrow_config": "Arrow routing",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron parallel layers",
    "enable_lora": "merged linear LoRA (enable_lora)",
}

# Fields that change training, memory or loading, never the delta weight; fields read here; and
# those that name dense tensors (see `dense`), which count where the file has them.
# fmt: off
_HARMLESS_FIELDS = frozenset((
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out", "bias", "base_model_name_or_path", "revision", "task_type",
    "target_modules", "target_parameters", "init_lora_weights", "lora_dropout", "inference_mode",
    "auto_mapping", "peft_version", "layers_to_transform", "layers_pattern", "exclude_modules",
    "megatron_core", "runtime_config", "ensure_weight_tying", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "merge_weights", "modules_to_save", "lora_bias",
    "trainable_token_indices",
))
# fmt: on


def guarded_init(init: object) -> str:
    """The init in lower case if all clients must share it, else "".

    >>> guarded_init("PiSSA"), guarded_init("gaussian"), guarded_init(True)
    ('pissa', '', '')
    """
    return init.lower() if isinstance(init, str) and init.lower() not in _HARMLESS else ""


def changes_base(init: str) -> bool:
    """Whether a guarded init may change the base weights: all do but those that start from data.

    >>> changes_base("pissa"), changes_base("eva")
    (True, False)
    """
    return init not in _FROM_DATA


def init_effect(init: str) -> str:
    """The effect of a guarded init, as the end of a sentence: "init_lora_weights 'pissa' ..."."""
    if init in _FROM_DATA:
        return "starts the factors from the client's own data"
    return "changes the base weights: the update refers to the changed base"


def refuse_variants(raw: Mapping[str, Any]) -> None:
    """Refuse a config whose delta weights may be more than scaling * B @ A.

    Raises:
        RejectedClient: another `peft_type` than LORA, a field of a variant, or an unknown field
            that is not empty. Names the field.
    """
    kind = raw.get("peft_type")
    if kind is not None and kind != "LORA":
        raise RejectedClient(
            f"adapter config: peft_type is {quoted(kind)}, only 'LORA' can be merged",
            found=f"peft_type {quoted(kind)}",
            expected="peft_type 'LORA'",
        )
    for name, variant in _REFUSED_FIELDS.items():
        if _is_set(raw.get(name)):
            raise RejectedClient(
                f"adapter config: not supported: {variant} ({name} is {quoted(raw[name], 60)})",
                found=variant,
                expected="plain LoRA, scaling * B @ A",
            )
    for name, value in raw.items():
        known = name in _HARMLESS_FIELDS or name in _REFUSED_FIELDS
        if not known and _is_set(value):
            raise RejectedClient(
                f"adapter config: unknown field {quoted(name)} is {quoted(value, 60)}",
                found=f"field {quoted(name)}",
                expected="no field that could change the update",
                hint="remove the field if it does not change the update",
            )


def _is_set(value: Any) -> bool:
    """False for null, false, zero and whatever is empty."""
    return not (value is None or value is False or value in (0, "", [], {}, ()))
