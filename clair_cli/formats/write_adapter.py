"""An adapter as bytes: the same tensors and fields always give the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clair_cli.formats.adapter import Adapter
from clair_cli.formats.adapter_file import SafetensorsParts, memory_of

if TYPE_CHECKING:
    from torch import Tensor


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements in C order, little-endian; any shape, any device."""
    return bytes(memory_of(tensor))


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of tensors that are all there; see `SafetensorsParts`."""
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

    One rank and one alpha for all modules, no patterns, no rsLoRA. The other fields are the
    clients' own (the most common value).

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
        "auto_mapping": _agreed_mapping([config.raw.get("auto_mapping") for config in configs]),
        "base_model_name_or_path": _most_common(c.base_model_name_or_path for c in configs),
        "revision": _most_common(config.revision for config in configs),
        "task_type": _most_common(config.task_type for config in configs),
        "fan_in_fan_out": bool(_most_common(c.fan_in_fan_out for c in configs if c.raw)),
        "lora_dropout": _most_common(_dropout(config.raw) for config in configs) or 0.0,
        "target_modules": _target_modules(adapters, modules),
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
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


def _most_common(values: Iterable[Any]) -> Any:
    """The most common value that is not None; of equals the first in sorted order."""
    counts = Counter(value for value in values if value is not None)
    if not counts:
        return None
    top = max(counts.values())
    return min((value for value, count in counts.items() if count == top), key=str)


def _dropout(raw: Mapping[str, Any]) -> float | None:
    value = raw.get("lora_dropout")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= 1 else None  # NaN fails too


def _agreed_mapping(mappings: Sequence[Any]) -> dict[str, str] | None:
    """`auto_mapping` if every client has the same, of the two fields PEFT writes, else None."""
    first = mappings[0]
    if not isinstance(first, dict) or any(mapping != first for mapping in mappings):
        return None
    plain = first.keys() == {"base_model_class", "parent_library"}
    return first if plain and all(isinstance(value, str) for value in first.values()) else None


def _target_modules(adapters: Sequence[Adapter], modules: Sequence[str]) -> list[str]:
    """The clients' own list where it gives exactly `modules`, else the full paths.

    A short list is exact only if some client used it, without further filters, and has these
    very modules: on the same base model PEFT then finds them and no others. It must not reach
    a module that another client shows the base to have.
    """
    wanted = set(modules)
    others = {module for adapter in adapters for module in adapter.modules} - wanted
    filters = ("exclude_modules", "layers_to_transform", "layers_pattern")
    lists = {
        adapter.config.target_modules
        for adapter in adapters
        if set(adapter.modules) == wanted
        and isinstance(adapter.config.target_modules, tuple)
        and not any(adapter.config.raw.get(name) not in (None, [], "") for name in filters)
    }
    for targets in sorted(lists, key=lambda names: (len(names or ()), names)):
        reached = any(_targeted(module, targets or ()) for module in others)
        if not reached and all(_targeted(module, targets or ()) for module in wanted):
            return sorted(targets or ())
    return sorted(wanted)


def _targeted(module: str, targets: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in targets)
