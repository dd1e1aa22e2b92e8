"""An adapter as bytes: the same tensors and fields always give the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.base_names import name_to_write
from clair_cli.formats.safetensors.writer import SafetensorsParts

if TYPE_CHECKING:
    from torch import Tensor


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A whole safetensors file; see `SafetensorsParts`."""
    made = SafetensorsParts(tensors, metadata)
    for name, tensor in tensors.items():
        made.add(name, tensor)
    return b"".join(made.parts())


def config_json(config: Mapping[str, object]) -> str:
    """A config as text: keys sorted, two spaces, one newline at the end.

    Raises:
        ValueError: NaN or Infinity in it.
    """
    return json.dumps(config, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def merged_config(
    adapters: Sequence[Adapter], modules: Sequence[str], rank: int, alpha: float
) -> dict[str, object]:
    """The `adapter_config.json` of a merge, in the form all loaders read alike.

    One rank and one alpha for all modules, no patterns, no rsLoRA. Each other field has the value
    that more than half of the clients have (a missing one counts as null), else null, false or 0:
    no single client decides which base model a loader takes.

    Args:
        adapters: the clients merged, at least one.
        modules: the modules written.
        rank: of every module written, at least 1.
        alpha: finite.

    Returns:
        JSON-ready fields; the order of clients does not change them.
    """
    configs = [adapter.config for adapter in adapters]
    return {
        "peft_type": "LORA",
        "auto_mapping": _of_most([_mapping(config.raw) for config in configs]),
        "base_model_name_or_path": name_to_write(c.base_model_name_or_path for c in configs),
        "revision": _of_most([config.revision for config in configs]),
        "task_type": _of_most([config.task_type for config in configs]),
        "fan_in_fan_out": bool(_of_most([c.fan_in_fan_out if c.raw else None for c in configs])),
        "lora_dropout": _of_most([_dropout(config.raw) for config in configs]) or 0.0,
        "target_modules": _target_modules(adapters, modules),
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) and abs(alpha) < 2**53 else alpha,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def with_dense(
    config: Mapping[str, object], adapters: Sequence[Adapter], kinds: Set[str]
) -> dict[str, object]:
    """The config of an adapter that has dense tensors too: PEFT makes room for them by these
    fields. Each has the value that more than half of the clients with such tensors have.

    Args:
        kinds: of the tensors that are written, as in `DenseTensor`.
    """
    raws = [adapter.config.raw for adapter in adapters if adapter.dense]
    fields = dict(config)
    if "dense" in kinds:
        fields["modules_to_save"] = _of_most([_words(raw.get("modules_to_save")) for raw in raws])
        bias = _of_most([str(raw.get("bias")) for raw in raws])
        fields["bias"] = bias if bias in ("all", "lora_only") else "none"
    if "lora_bias" in kinds:
        fields["lora_bias"] = True
    if "rows" in kinds:
        rows = [raw.get("trainable_token_indices") for raw in raws]
        fields["trainable_token_indices"] = _of_most([row for row in rows if row])
    return fields


def _words(value: Any) -> list[str] | None:
    given = isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)
    return sorted(set(value)) if given and value else None


T = TypeVar("T")


def _of_most(values: Sequence[T]) -> T | None:
    """The value that more than half of the clients have, or None (majority vote of Boyer and
    Moore: only one that is left when unequal values are paired off can be it)."""
    left, lead = None, 0
    for value in values:
        left = value if lead == 0 else left
        lead += 1 if value == left else -1
    return left if 2 * sum(value == left for value in values) > len(values) else None


def _dropout(raw: Mapping[str, Any]) -> float | None:
    value = raw.get("lora_dropout")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= 1 else None  # NaN fails too


def _mapping(raw: Mapping[str, Any]) -> dict[str, str] | None:
    """The two fields of `auto_mapping` that PEFT writes, if they are there, else None."""
    value, names = raw.get("auto_mapping"), ("base_model_class", "parent_library")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in names):
        return None
    return {name: value[name] for name in names}


def _target_modules(adapters: Sequence[Adapter], modules: Sequence[str]) -> list[str]:
    """The clients' own list where it gives exactly `modules`, else the full paths.

    A short list is exact only if clients used it, without further filters, and have these very
    modules: on the same base model PEFT then finds them and no others. More than half of the
    clients must say so, and it must not reach a module that another shows the base to have.
    """
    wanted = set(modules)
    others = {module for adapter in adapters for module in adapter.modules} - wanted
    targets = _of_most([_own_list(adapter, wanted) for adapter in adapters])
    if targets is not None:
        names = frozenset(targets)
        reached = any(_targeted(module, names) for module in others)
        if not reached and all(_targeted(module, names) for module in wanted):
            return sorted(targets)
    return sorted(wanted)


def _own_list(adapter: Adapter, wanted: Set[str]) -> tuple[str, ...] | None:
    """A client's list of target modules if nothing else decides which those are."""
    filters = ("exclude_modules", "layers_to_transform", "layers_pattern")
    targets = adapter.config.target_modules
    if not isinstance(targets, tuple) or adapter.modules.keys() != wanted:
        return None
    filtered = any(adapter.config.raw.get(name) not in (None, [], "") for name in filters)
    return None if filtered else targets


def _targeted(module: str, names: Set[str]) -> bool:
    """Whether PEFT would adapt the module: it has one of the names, or ends in '.' and one."""
    dots = (match.end() for match in re.finditer(r"\.", module))
    return module in names or any(module[start:] in names for start in dots)
