"""Dense tensors: what PEFT trains as a whole and saves beside the LoRA.

A classification head (`modules_to_save`), biases (`bias`), the bias of `lora_B` (`lora_bias`), rows
of an embedding (`trainable_token_indices`), and copies of a whole embedding or output layer that
PEFT adds after a vocabulary was resized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clair_cli.adapters.names.parts import DenseKey, DenseKind
from clair_cli.errors import RejectedClient
from clair_cli.formats.safetensors.source import TORCH_DTYPES, TensorEntry
from clair_cli.text import quoted


@dataclass(frozen=True)
class DenseTensor:
    """One dense tensor of a client.

    Attributes:
        name: path of the parameter, without `base_model.model.` and the adapter's name.
        key: its name in the client's file.
        kind: "dense": a parameter's own value; "lora_bias": added to a module's output after
            `scaling`; "rows": the new rows of an embedding.
        shape: every axis at least 1. dtype: "float32", "float16", "bfloat16" or "float64".
        scaling: what a loader multiplies it with: of "lora_bias" the module's, else 1.
        module: of "lora_bias", the path of its module in the client's file; else "".
        rows: of "rows", their indices in the embedding, in the order of the tensor; else ().
    """

    name: str
    key: str
    kind: DenseKind
    shape: tuple[int, ...]
    dtype: str
    scaling: float = 1.0
    module: str = ""
    rows: tuple[int, ...] = ()

    @property
    def form(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What must be the same in all clients: the shape and the rows' indices."""
        return self.shape, self.rows


def dense_tensors(
    keys: Sequence[DenseKey],
    tensors: Mapping[str, TensorEntry],
    scalings: Mapping[str, float],
    config: Mapping[str, Any],
) -> dict[str, DenseTensor]:
    """The dense tensors of a checked client, by name, sorted. Buffers of whole numbers, such as a
    batch norm's counter, are none: they can't be averaged.

    Args:
        scalings: of the LoRA, by module path.
        config: fields of the adapter config.

    Raises:
        RejectedClient: a bias of `lora_B` without its module, or token rows without their indices.
    """
    found = {}
    for one in keys:
        entry = tensors[one.key]
        if entry.dtype not in TORCH_DTYPES:
            continue
        scaling = 1.0
        rows: tuple[int, ...] = ()
        if one.kind == "lora_bias":
            if one.module not in scalings:
                raise RejectedClient(
                    f"tensor {quoted(one.key)} is the bias of a lora_B that the file does not have",
                    module=one.module,
                    found="lora_B.bias alone",
                    expected="lora_A and lora_B beside it",
                )
            scaling = scalings[one.module]
        elif one.kind == "rows":
            rows = _rows(one, entry.shape, config.get("trainable_token_indices"))
        found[one.name] = DenseTensor(
            one.name, one.key, one.kind, entry.shape, TORCH_DTYPES[entry.dtype], scaling,
            one.module, rows,
        )  # fmt: skip
    return found


def _rows(one: DenseKey, shape: tuple[int, ...], given: Any) -> tuple[int, ...]:
    """The indices of an embedding's trained rows: `trainable_token_indices` is a list, or an object
    of the last parts of the embedding's path to a list."""
    path = one.name.removesuffix(".token_adapter.trainable_tokens_delta")
    if isinstance(given, Mapping):
        fitting = [v for k, v in given.items() if path == k or path.endswith(f".{k}")]
        given = fitting[0] if len(fitting) == 1 else None
    if not isinstance(given, (list, tuple)) or any(type(row) is not int for row in given):
        raise RejectedClient(
            f"tensor {quoted(one.key)} has rows of an embedding, and the config's "
            "trainable_token_indices does not say which",
            found="no indices",
            expected="a list of row numbers",
        )
    if len(given) != shape[0]:
        raise RejectedClient(
            f"tensor {quoted(one.key)} has {shape[0]:,} rows, and the config's "
            f"trainable_token_indices names {len(given):,}",
            found=f"{shape[0]:,} rows",
            expected=f"{len(given):,} rows",
        )
    return tuple(given)
