"""A safetensors file that passed the check (check.py): tensors on demand.

Nothing is mapped into memory, so that a file cut short by its owner ends in a message and not
in a dead process. What is judged is what is merged: each later read compares a digest, unless the
bytes that were checked were kept.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.errors import RejectedClient
from clair_cli.formats.files import open_regular, read_exactly, read_into
from clair_cli.formats.safetensors.header import DTYPE_BITS
from clair_cli.text import quoted

if TYPE_CHECKING:
    from torch import Tensor


class KeptBytes:
    """Memory for the bytes of files that were checked: they are not read and hashed again.

    Args:
        room: in bytes, for all files together.
    """

    def __init__(self, room: int) -> None:
        self._left, self._lock = room, threading.Lock()

    def take(self, size: int) -> memoryview | None:
        """Memory for one file's data; None if there is too little left."""
        with self._lock:
            if size > self._left:
                return None
            self._left -= size
        return memoryview(bytearray(size))


DIGEST_BYTES = 16

TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The dtypes an adapter may have, as the header and as torch call them."""

INTEGER_DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16"}
"""The further ones that an alpha may have."""

_CODES = {"F16": "e", "BF16": "f", "F32": "f", "F64": "d", "I64": "q", "I32": "i", "I16": "h"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        name: as in the header; any characters.
        dtype: as in the header: "F32", "BF16"...
        shape: every axis at least 1; () for a scalar.
        begin, end: byte range, counted from the end of the header.
        digest: the first 16 bytes of the bytes' SHA-256.
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


@dataclass(frozen=True)
class SafetensorsFile:
    """A file that passed the check. Keeps no descriptor open.

    Attributes:
        path: what `read` opens.
        sha256: of all bytes of the file, hex.
        metadata: the header's `__metadata__`, or {}.
        tensors: by name, in the order of their bytes.
        data_start: where the header ends, in bytes.
        size: of the file, in bytes.
        stamp: of the file when it was checked; see `looks_unchanged`.
        shown: the path as error objects carry it.
        kept: the tensors' bytes as they were checked, if there was room for them.
        root: as in `open_regular`.
    """

    path: Path
    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int
    size: int
    stamp: tuple[int, ...]
    shown: str = ""
    kept: memoryview | None = None
    root: Path | None = None

    def read(self, key: str) -> Tensor:
        """One tensor, from the very bytes that were checked when the file was opened.

        Returns:
            A CPU tensor of the stored shape and dtype (a float of 16, 32 or 64 bits, or an
            integer of as many), not to be written to.

        Raises:
            KeyError: no such tensor.
            RejectedClient: the file is gone or changed, or the dtype is another one.
        """
        import torch

        entry = self.tensors[key]
        dtype = (TORCH_DTYPES | INTEGER_DTYPES).get(entry.dtype)
        if dtype is None:
            raise self._other_dtype(entry)
        tensor = torch.frombuffer(self._bytes(key), dtype=getattr(torch, dtype))
        return tensor.reshape(entry.shape)

    def held(self, begin: int, end: int) -> memoryview | None:
        """Some of the tensors' bytes as they were checked, if they are still in memory."""
        if self.kept is None or not self.looks_unchanged():
            return None
        return self.kept[begin:end]

    @contextmanager
    def read_again(self) -> Iterator[Callable[[memoryview], None]]:
        """Yield what fills memory with the tensors' bytes, in the order of the file to the last
        one. Only when that ends well were they those which were checked.

        Raises:
            RejectedClient: the file is gone or changed.
        """
        whole = hashlib.sha256()
        with self._opened() as fd:
            whole.update(read_exactly(fd, self.data_start))

            def fill(memory: memoryview) -> None:
                if read_into(fd, memory) < len(memory):
                    raise self._changed()
                whole.update(memory)

            yield fill
        if whole.hexdigest() != self.sha256:
            raise self._changed()

    def number(self, key: str) -> float:
        """The value of a tensor with one element; torch is not needed for it.

        Raises:
            KeyError, RejectedClient: as `read`.
        """
        entry = self.tensors[key]
        if entry.dtype not in _CODES:
            raise self._other_dtype(entry)
        missing = bytes(2) if entry.dtype == "BF16" else b""  # it is half a float32
        return float(struct.unpack("<" + _CODES[entry.dtype], missing + self._bytes(key))[0])

    def _bytes(self, key: str) -> bytearray | memoryview:
        entry = self.tensors[key]
        checked = self.held(entry.begin, entry.end)
        if checked is not None:
            aligned = entry.begin * 8 % DTYPE_BITS[entry.dtype] == 0
            return checked if aligned else bytearray(checked)
        with self._opened(key) as fd:
            os.lseek(fd, self.data_start + entry.begin, os.SEEK_SET)
            data = bytearray(entry.end - entry.begin)
            read_into(fd, memoryview(data))
        if digest_of(data) != entry.digest:
            raise self._changed(key)
        return data

    @contextmanager
    def _opened(self, key: str | None = None) -> Iterator[int]:
        """The file as it was when it was checked, as far as its size says.

        Raises:
            RejectedClient: it is gone, changed, or can't be read, which `key` was wanted of.
        """
        with open_regular(self.path, self.shown, self.root) as (fd, status):
            if status.st_size != self.size:
                raise self._changed(key)
            yield fd

    def digest(self, key: str) -> bytes:
        """Of one tensor's bytes when the file was opened."""
        return self.tensors[key].digest

    def looks_unchanged(self) -> bool:
        """Whether the path still leads to the file that was checked, with its size and time. What
        was kept of it may then be used without another look at its bytes."""
        try:
            return stamp_of(os.stat(self.path, follow_symlinks=False)) == self.stamp
        except OSError:
            return False

    def check_unchanged(self) -> None:
        """See `looks_unchanged`.

        Raises:
            RejectedClient: it does not.
        """
        if not self.looks_unchanged():
            raise self._changed()

    def _other_dtype(self, entry: TensorEntry) -> RejectedClient:
        return RejectedClient(
            f"tensor {quoted(entry.name)} has dtype {entry.dtype}", path=self.shown
        )

    def _changed(self, key: str | None = None) -> RejectedClient:
        name = quoted(os.path.basename(self.shown))
        where = "" if key is None else f" tensor {quoted(key)}"
        return RejectedClient(f"{name} changed while reading{where}", path=self.shown)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """What a file that is written to, or another one, has differently."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def digest_of(data: bytes | bytearray) -> bytes:
    """The digest a `TensorEntry` carries: half of the SHA-256, which processors have built in."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
