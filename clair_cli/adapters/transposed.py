"""Tensors of a source whose matrices are stored the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clair_cli.errors import RejectedClient
from clair_cli.formats.safetensors.source import TensorEntry, TensorSource, tensor_of
from clair_cli.formats.safetensors.writer import memory_of
from clair_cli.text import quoted


@dataclass(frozen=True)
class TransposedSource:
    """A `TensorSource` of the transposes of another's matrices.

    Attributes:
        source: the other one.
        tensors: its entries with shapes turned round; digests are those of the bytes as stored.
    """

    source: TensorSource
    tensors: Mapping[str, TensorEntry]

    def raw(self, *keys: str) -> memoryview:
        """See `TensorSource.raw`."""
        parts = [memory_of(tensor_of(self.source, key).T.contiguous()) for key in keys]
        return parts[0] if len(parts) == 1 else memoryview(bytearray().join(parts))

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """See `TensorSource.part`."""
        return self.raw(key)[begin:end]


def transposed(source: TensorSource) -> TransposedSource:
    """The transposes of a source's tensors.

    Raises:
        RejectedClient: one is no matrix.
    """
    for entry in source.tensors.values():
        if len(entry.shape) != 2:
            stacked = " (LoRA of stacked experts)" if len(entry.shape) == 3 else ""
            raise RejectedClient(
                f"tensor {quoted(entry.name)} has shape {entry.shape}{stacked}",
                found=f"shape {entry.shape}",
                expected="lora_a (in, rank), lora_b (rank, out)",
            )
    turned = {key: replace(e, shape=e.shape[::-1]) for key, e in source.tensors.items()}
    return TransposedSource(source, turned)
