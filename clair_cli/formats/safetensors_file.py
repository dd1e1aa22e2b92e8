"""The one reader of safetensors files: strict header, one pass over the bytes, tensors on demand.

Nothing is mapped into memory, so that a file cut short by its owner ends in a message and not
in a dead process. What is judged is what is merged: each later read compares a digest.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.errors import RejectedClient
from clair_cli.formats.handover import HandedOver, Handover
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.regular_file import open_regular, read_exactly, read_into, sniff
from clair_cli.formats.safetensors_header import DTYPE_BITS, HeaderEntry, parse_header
from clair_cli.formats.strict_json import quoted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Limits", "SafetensorsFile", "TensorEntry", "open_safetensors"]

CHUNK_BYTES = 2 * 1024 * 1024
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
        handed: its bytes as they were checked, if there was room for them.
    """

    path: Path
    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int
    size: int
    stamp: tuple[int, ...]
    shown: str = ""
    handed: HandedOver | None = None

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
        if self.handed is None or not self.looks_unchanged():
            return None
        return self.handed.room(begin, end)

    def read_run(self, keys: Sequence[str], memory: memoryview) -> None:
        """The bytes of tensors that follow each other in the file, read again.

        Args:
            memory: gets them; of their size.

        Raises:
            RejectedClient: the file is gone or changed.
        """
        begin = self.tensors[keys[0]].begin
        self._fill(begin, memory, keys[0])
        for key in keys:
            entry = self.tensors[key]
            if digest_of(memory[entry.begin - begin : entry.end - begin]) != entry.digest:
                raise self._changed(key)

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
        data = bytearray(entry.end - entry.begin)
        self._fill(entry.begin, memoryview(data), key)
        if digest_of(data) != entry.digest:
            raise self._changed(key)
        return data

    def _fill(self, begin: int, memory: memoryview, key: str) -> None:
        """Read from that byte of the tensors on; `key` is what an error names."""
        with open_regular(self.path, self.shown) as (fd, status):
            if status.st_size != self.size:
                raise self._changed(key)
            os.lseek(fd, self.data_start + begin, os.SEEK_SET)
            if read_into(fd, memory) < len(memory):
                raise self._changed(key)

    def digest(self, key: str) -> bytes:
        """Of one tensor's bytes when the file was opened."""
        return self.tensors[key].digest

    def looks_unchanged(self) -> bool:
        """Whether the path still leads to the file that was checked, with its size and time. What
        was kept of it may then be used without another look at its bytes."""
        try:
            return _stamp(os.stat(self.path, follow_symlinks=False)) == self.stamp
        except OSError:
            return False

    def check_unchanged(self) -> None:
        """See `looks_unchanged`.

        Raises:
            RejectedClient: it does not.
        """
        if not self.looks_unchanged():
            name = quoted(os.path.basename(self.shown))
            raise RejectedClient(f"{name} changed while reading", path=self.shown)

    def _other_dtype(self, entry: TensorEntry) -> RejectedClient:
        return RejectedClient(
            f"tensor {quoted(entry.name)} has dtype {entry.dtype}", path=self.shown
        )

    def _changed(self, key: str) -> RejectedClient:
        name = os.path.basename(self.shown)
        return RejectedClient(
            f"{quoted(name)} changed while reading tensor {quoted(key)}", path=self.shown
        )


def open_safetensors(
    path: Path, limits: Limits, *, shown: str | None = None, handover: Handover | None = None
) -> SafetensorsFile:
    """Check a file from a stranger, in one sequential pass over its bytes.

    Args:
        path: the file; its last component may not be a link.
        limits: sizes to refuse; checked before anything of that size is read.
        shown: the path for error objects, when it is not `path`.
        handover: gets the tensors' bytes, if it has room.

    Returns:
        Header, digests and counts of non-finite values; no tensor is kept here.

    Raises:
        RejectedClient: unreadable, not a regular file, not exactly a safetensors file, too
            large, or changed while it was read. `path` is set.
    """
    if sys.byteorder != "little":
        raise RejectedClient("safetensors files are read on little-endian machines only")
    shown = path.as_posix() if shown is None else shown
    try:
        with open_regular(path, shown) as (fd, status):
            if status.st_size > limits.max_file_bytes:
                raise RejectedClient(
                    f"file has {status.st_size:,} bytes, above the limit of "
                    f"{limits.max_file_bytes:,}",
                    found=f"{status.st_size:,} bytes",
                    expected=f"at most {limits.max_file_bytes:,} bytes",
                    hint=remedy("file"),
                )
            return _scan(fd, status, path, shown, limits, handover)
    except RejectedClient as error:
        error.path = error.path or shown
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RejectedClient(f"file is unreadable: {reason}", path=shown) from None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _scan(
    fd: int,
    status: os.stat_result,
    path: Path,
    shown: str,
    limits: Limits,
    handover: Handover | None,
) -> SafetensorsFile:
    whole, size = hashlib.sha256(), status.st_size
    header = _read_header(fd, size, limits)
    whole.update(len(header).to_bytes(8, "little"))
    whole.update(header)
    metadata, entries = parse_header(header, size - 8 - len(header), limits)
    start = 8 + len(header)
    handed = None if handover is None else handover.reserve(size - start)
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _scan_tensor(fd, entry, whole, handed)
    if read_exactly(fd, 1) or os.fstat(fd).st_size != size:
        raise RejectedClient("file changed while reading")
    return SafetensorsFile(
        path, whole.hexdigest(), metadata, tensors, start, size, _stamp(status), shown, handed
    )


def _read_header(fd: int, size: int, limits: Limits) -> bytes:
    """The header's JSON bytes; a wrong length is explained by what the file really is."""
    if size == 0:
        raise RejectedClient("file is empty (0 bytes)", found="0 bytes")
    start = read_exactly(fd, min(size, 512))
    length = int.from_bytes(start[:8], "little")
    if size >= 8 and length <= min(size - 8, limits.max_header_bytes) and start[8:9] == b"{":
        os.lseek(fd, 8, os.SEEK_SET)
        header = read_exactly(fd, length)
        if len(header) != length:
            raise RejectedClient("file changed while reading")
        return header
    kind = sniff(start)
    if kind:
        raise RejectedClient(f"file is {kind}", found=kind, expected="a safetensors file")
    if size < 8:
        raise RejectedClient(
            f"file has {size} byte{'s' if size > 1 else ''}, too short for safetensors"
        )
    if length > limits.max_header_bytes:
        raise RejectedClient(
            f"header length {length:,} is above the limit of {limits.max_header_bytes:,} bytes",
            hint=remedy("header") if length <= size - 8 else "",
        )
    if length > size - 8:
        raise RejectedClient(
            f"file is truncated: header needs {length:,} bytes, found {size - 8:,}",
            found=f"{size - 8:,} bytes",
            expected=f"{length:,} bytes",
        )
    raise RejectedClient("header does not start with '{'", expected="a JSON object")


def _chunks(fd: int, count: int, into: memoryview | None) -> Iterator[bytes | memoryview]:
    """Read piece by piece, into memory that is given or new."""
    while count:
        size = min(count, CHUNK_BYTES)
        if into is None:
            chunk: bytes | memoryview = read_exactly(fd, size)
        else:
            chunk, into = into[:size], into[size:]
            chunk = chunk[: read_into(fd, chunk)]
        if len(chunk) != size:
            raise RejectedClient("file changed while reading")
        count -= size
        yield chunk


def _scan_tensor(
    fd: int, entry: HeaderEntry, whole: hashlib._Hash, handed: HandedOver | None
) -> TensorEntry:
    # imported after a fork, if there is one: numpy starts threads
    from clair_cli.formats.elements import NO_EXPONENT, look_at

    digest = hashlib.sha256()
    total, first, offset, largest = 0, -1, 0, NO_EXPONENT
    into = None if handed is None else handed.room(entry.begin, entry.end)
    for chunk in _chunks(fd, entry.end - entry.begin, into):
        whole.update(chunk)
        digest.update(chunk)
        found, at, exponent = look_at(chunk, entry.dtype)
        if found and first < 0:
            first = offset + at
        total += found
        largest = max(largest, exponent)
        offset += len(chunk) * 8 // DTYPE_BITS[entry.dtype]
    return TensorEntry(*entry, digest.digest()[:DIGEST_BYTES], total, first, largest)


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The digest a `TensorEntry` carries: half of the SHA-256, which processors have built in."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
