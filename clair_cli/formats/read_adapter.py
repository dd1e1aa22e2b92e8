"""One client's tensors and config, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.adapter import Adapter, LoraModule, TensorSource
from clair_cli.formats.adapter_config import AdapterConfig
from clair_cli.formats.key_map import KeyPair
from clair_cli.formats.keys import pair_keys
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.safetensors_file import TORCH_DTYPES, TensorEntry, open_safetensors
from clair_cli.formats.strict_json import quoted

_WIDER = {  # of two dtypes that differ, one that holds the values of both
    frozenset(("float16", "bfloat16")): "float32",
    frozenset(("float16", "float32")): "float32",
    frozenset(("bfloat16", "float32")): "float32",
}


def read_adapter(
    name: str,
    weights_path: Path,
    config: AdapterConfig,
    limits: Limits | None = None,
    *,
    notes: Iterable[str] = (),
) -> Adapter:
    """Open one weights file and check it against its config.

    Args:
        name: the client's name.
        weights_path: a `.safetensors` file; its last component may not be a link.
        config: from `parse_config` or `assumed_config`.
        limits: default `Limits()`.
        notes: put before the reader's own.

    Raises:
        RejectedClient: with client, module and path where known.
    """
    limits = limits or Limits()
    shown = weights_path.as_posix()
    try:
        file = open_safetensors(weights_path, limits)
        return build_adapter(
            name, shown, file.sha256, file.tensors, file, config, limits, notes=notes
        )
    except RejectedClient as error:
        error.client = error.client or name
        error.path = error.path or shown
        raise


def build_adapter(
    name: str,
    path: str,
    sha256: str,
    tensors: Mapping[str, TensorEntry],
    source: TensorSource,
    config: AdapterConfig,
    limits: Limits,
    *,
    notes: Iterable[str] = (),
) -> Adapter:
    """Turn checked tensors, from a file or from memory, into an adapter.

    Raises:
        RejectedClient: tensors that are not LoRA pairs, of a wrong dtype, shape or rank, not
            finite, or at odds with the config. Sets `module` where one is to blame.
    """
    key_map = pair_keys({key: entry.shape for key, entry in tensors.items()})
    for entry in tensors.values():
        _check_floats(entry)
    config.check_patterns(pair.module for pair in key_map.pairs)
    modules = {}
    for pair in key_map.pairs:
        modules[pair.module] = _module(pair, tensors, config, limits)
        _check_magnitude(modules[pair.module], tensors)
    return Adapter(
        name=name,
        path=path,
        sha256=sha256,
        config=config,
        prefix=key_map.prefix,
        modules=modules,
        source=source,
        notes=(*notes, *config.notes, *key_map.notes),
    )


def _check_floats(entry: TensorEntry) -> None:
    if entry.dtype not in TORCH_DTYPES:
        allowed = "F32, F16, BF16 or F64"
        raise RejectedClient(
            f"tensor {quoted(entry.name)} has dtype {entry.dtype}, expected {allowed}",
            found=entry.dtype,
            expected=allowed,
        )
    if entry.non_finite:
        count = math.prod(entry.shape)
        raise RejectedClient(
            f"tensor {quoted(entry.name)} has {entry.non_finite:,} NaN or Inf of {count:,} values, "
            f"the first at flat index {entry.first_non_finite}",
            found=f"{entry.non_finite:,} NaN or Inf",
            expected="finite values",
        )


def _module(
    pair: KeyPair, tensors: Mapping[str, TensorEntry], config: AdapterConfig, limits: Limits
) -> LoraModule:
    entry_A, entry_B = tensors[pair.key_A], tensors[pair.key_B]
    (rank, in_features), (out_features, rank_B) = entry_A.shape, entry_B.shape
    if rank != rank_B:
        raise RejectedClient(
            f"lora_A has rank {rank} but lora_B has rank {rank_B}",
            module=pair.module,
            found=f"lora_A {entry_A.shape}, lora_B {entry_B.shape}",
            expected="lora_A (rank, in_features), lora_B (out_features, rank)",
            hint="re-export this adapter, or move it out of the cohort's folder",
        )
    if rank > limits.max_rank:
        raise RejectedClient(
            f"rank {rank} is above the limit of {limits.max_rank}",
            module=pair.module,
            found=f"rank {rank}",
            expected=f"at most {limits.max_rank}",
            hint=remedy("rank"),
        )
    expected = config.rank_for(pair.module)
    if expected is not None and expected != rank:
        raise RejectedClient(
            f"the tensors have rank {rank} but the config says rank {expected}",
            module=pair.module,
            found=f"rank {rank} in the tensors",
            expected=f"rank {expected} from the config",
        )
    scaling = config.scaling(pair.module, rank)
    if not math.isfinite(scaling):
        raise RejectedClient(
            f"scaling is {scaling}", module=pair.module, expected="a finite number"
        )
    return LoraModule(
        name=pair.module,
        key_A=pair.key_A,
        key_B=pair.key_B,
        rank=rank,
        in_features=in_features,
        out_features=out_features,
        alpha=config.alpha_for(pair.module, rank),
        scaling=scaling,
        dtype=_dtype(entry_A, entry_B),
    )


# An update's entries may reach 1e100: squares of norms still fit float64, and the product of the
# largest float32 numbers is far below.
_MAX_EXPONENT = math.log2(1e100)


def _check_magnitude(module: LoraModule, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse what float64 can't be trusted with: nobody else's verdict may depend on it."""
    if module.scaling == 0:
        return
    product = tensors[module.key_A].exponent + tensors[module.key_B].exponent
    reached = math.log2(abs(module.scaling)) + math.log2(module.rank) + product
    if reached > _MAX_EXPONENT:
        size = f"1e{round(reached * math.log10(2))}"
        raise RejectedClient(
            f"the update's norm may reach {size} (scaling {module.scaling:.3g}), too large to "
            "compute with",
            module=module.name,
            found=f"up to {size}",
            expected="below 1e100",
        )


def _dtype(entry_A: TensorEntry, entry_B: TensorEntry) -> str:
    names = frozenset((TORCH_DTYPES[entry_A.dtype], TORCH_DTYPES[entry_B.dtype]))
    if len(names) == 1:
        return next(iter(names))
    return _WIDER.get(names, "float64")
