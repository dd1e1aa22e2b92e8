"""The bytes of a client's tensors: one protocol, whether a file holds them or the caller does."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from clair_cli.errors import RejectedClient
from clair_cli.text import quoted

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.formats.safetensors.header import HeaderEntry

DIGEST_BYTES = 16

TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The dtypes an adapter may have, as the header and as torch call them."""

INTEGER_DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16"}
"""The further ones that an alpha may have."""

_CODES = {"F16": "e", "BF16": "f", "F32": "f", "F64": "d", "I64": "q", "I32": "i", "I16": "h"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file or of a state dict, as it was checked.

    Attributes:
        name: as in the header; any characters.
        dtype: as in the header: "F32", "BF16"...
        shape: every axis at least 1; () for a scalar.
        begin, end: byte range, counted from the end of the header; in memory from the first byte.
        digest: the first 16 bytes of the SHA-256 of the tensor's bytes.
        non_finite: how many elements are NaN or Inf; 0 for dtypes that are not floats.
        first_non_finite: flat index of the first of them, or -1.
        exponent: the magnitude of every finite element is below 2**exponent.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    digest: bytes
    non_finite: int = 0
    first_non_finite: int = -1
    exponent: int = 0


class TensorSource(Protocol):
    """Where an adapter's tensors come from: a checked file, or tensors in memory."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """By name, in the order of their bytes."""
        ...

    def raw(self, *keys: str) -> memoryview:
        """The bytes of one tensor, or of several that follow each other, not to be written to.

        They are the bytes that were checked when the source was opened: bytes that may have changed
        since are compared with the digests of `tensors`.

        Args:
            keys: names of tensors, in the order of `tensors`, none left out between two of them.

        Raises:
            KeyError: no such tensor.
            RejectedClient: the bytes are gone or changed.
        """
        ...

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """Some bytes of one tensor, which may have changed since they were checked; see
        `pieces_of`.

        Args:
            begin, end: counted from the tensor's first byte.

        Raises:
            KeyError, RejectedClient: as `raw`.
        """
        ...


def pieces_of(source: TensorSource, key: str, elements: int) -> Iterator[Tensor]:
    """One tensor in pieces, for tensors that are too large to hold of all clients at once.

    Args:
        elements: of each piece but the last, at least 1.

    Yields:
        CPU tensors of one axis, in order, not to be written to.

    Raises:
        KeyError: as `tensor_of`.
        RejectedClient: the bytes are gone; or, after the last piece, they are others than those
            that were checked, so that the pieces count only when all have been taken.
    """
    import torch

    entry = source.tensors[key]
    dtype = getattr(torch, TORCH_DTYPES[entry.dtype])
    length, step, seen = entry.end - entry.begin, elements * dtype.itemsize, hashlib.sha256()
    for begin in range(0, length, step):
        data = source.part(key, begin, min(length, begin + step))
        seen.update(data)
        yield torch.frombuffer(bytearray(data), dtype=dtype)
    if seen.digest()[:DIGEST_BYTES] != entry.digest:
        raise RejectedClient(f"tensor {quoted(key)} changed while reading")


def tensor_of(source: TensorSource, key: str) -> Tensor:
    """One tensor of a source.

    Returns:
        A CPU tensor of the stored shape and dtype, not to be written to: it may share memory with
        the source.

    Raises:
        KeyError: no such tensor, or its dtype is in neither `TORCH_DTYPES` nor `INTEGER_DTYPES`.
        RejectedClient: its bytes are gone or changed.
    """
    import torch

    entry = source.tensors[key]
    dtype = getattr(torch, (TORCH_DTYPES | INTEGER_DTYPES)[entry.dtype])
    data = source.raw(key)
    tensor = torch.frombuffer(data, dtype=dtype)
    if tensor.data_ptr() % tensor.element_size():  # a file may begin an element at any byte
        tensor = torch.frombuffer(bytearray(data), dtype=dtype)
    return tensor.reshape(entry.shape)


def number_of(source: TensorSource, key: str) -> float:
    """The value of a tensor with one element; torch is not needed for it.

    Raises:
        KeyError, RejectedClient: as `tensor_of`.
    """
    dtype = source.tensors[key].dtype
    missing = bytes(2) if dtype == "BF16" else b""  # it is half a float32
    return float(struct.unpack("<" + _CODES[dtype], missing + bytes(source.raw(key)))[0])


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The digest a `TensorEntry` carries: half of the SHA-256, which processors have built in."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


Entry = TypeVar("Entry", "HeaderEntry", TensorEntry)


def runs(entries: Iterable[Entry], most_bytes: int) -> Iterator[list[Entry]]:
    """Tensors to read at once: neighbours of at most `most_bytes` together, or a larger one alone.

    Args:
        entries: in the order of their bytes.
    """
    run: list[Entry] = []
    for entry in entries:
        if run and entry.end - run[0].begin > most_bytes:
            yield run
            run = []
        run.append(entry)
    if run:
        yield run
