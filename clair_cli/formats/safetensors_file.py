"""The one reader of safetensors files: strict header, one pass over the bytes, tensors on demand.

Nothing is mapped into memory, so that a file cut short by its owner ends in a message and not
in a dead process. What is judged is what is merged: each later read compares a digest.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.regular_file import open_regular, read_exactly, sniff
from clair_cli.formats.safetensors_header import DTYPE_BITS, HeaderEntry, parse_header
from clair_cli.formats.strict_json import quoted

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Limits", "SafetensorsFile", "TensorEntry", "open_safetensors"]

CHUNK_BYTES = 2 * 1024 * 1024
DIGEST_BYTES = 16

_EXPONENT_MASKS = {  # all exponent bits set: NaN or Inf
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}

_NO_EXPONENT = -1100  # below what any dtype holds

TORCH_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""The dtypes an adapter may have, as the header and as torch call them."""

INTEGER_DTYPES = {"I64": "int64", "I32": "int32", "I16": "int16"}
"""The further ones that an alpha may have."""


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
        shown: the path as error objects carry it.
    """

    path: Path
    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int
    size: int
    shown: str = ""

    def read(self, key: str) -> Tensor:
        """One tensor, from the very bytes that were checked when the file was opened.

        Returns:
            A new CPU tensor of the stored shape and dtype (a float of 16, 32 or 64 bits, or an
            integer of as many).

        Raises:
            KeyError: no such tensor.
            RejectedClient: the file is gone or changed, or the dtype is another one.
        """
        import torch

        entry = self.tensors[key]
        dtype = (TORCH_DTYPES | INTEGER_DTYPES).get(entry.dtype)
        if dtype is None:
            raise RejectedClient(f"tensor {quoted(key)} has dtype {entry.dtype}", path=self.shown)
        with open_regular(self.path, self.shown) as (fd, status):
            if status.st_size != self.size:
                raise self._changed(key)
            os.lseek(fd, self.data_start + entry.begin, os.SEEK_SET)
            data = bytearray(read_exactly(fd, entry.end - entry.begin))
        if digest_of(data) != entry.digest:
            raise self._changed(key)
        tensor = torch.frombuffer(data, dtype=getattr(torch, dtype))
        return tensor.reshape(entry.shape)

    def digest(self, key: str) -> bytes:
        """Of one tensor's bytes when the file was opened."""
        return self.tensors[key].digest

    def _changed(self, key: str) -> RejectedClient:
        name = os.path.basename(self.shown)
        return RejectedClient(
            f"{quoted(name)} changed while reading tensor {quoted(key)}", path=self.shown
        )


def open_safetensors(path: Path, limits: Limits, *, shown: str | None = None) -> SafetensorsFile:
    """Check a file from a stranger, in one sequential pass over its bytes.

    Args:
        path: the file; its last component may not be a link.
        limits: sizes to refuse; checked before anything of that size is read.
        shown: the path for error objects, when it is not `path`.

    Returns:
        Header, digests and counts of non-finite values; no tensor is kept.

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
            return _scan(fd, status.st_size, path, shown, limits)
    except RejectedClient as error:
        error.path = error.path or shown
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RejectedClient(f"file is unreadable: {reason}", path=shown) from None


def _scan(fd: int, size: int, path: Path, shown: str, limits: Limits) -> SafetensorsFile:
    whole = hashlib.sha256()
    header = _read_header(fd, size, limits)
    whole.update(len(header).to_bytes(8, "little"))
    whole.update(header)
    metadata, entries = parse_header(header, size - 8 - len(header), limits)
    tensors = {}
    for entry in entries:
        tensors[entry.name] = _scan_tensor(fd, entry, whole)
    if read_exactly(fd, 1) or os.fstat(fd).st_size != size:
        raise RejectedClient("file changed while reading")
    return SafetensorsFile(path, whole.hexdigest(), metadata, tensors, 8 + len(header), size, shown)


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


def _chunks(fd: int, count: int) -> Iterator[bytes]:
    while count:
        chunk = read_exactly(fd, min(count, CHUNK_BYTES))
        if len(chunk) != min(count, CHUNK_BYTES):
            raise RejectedClient("file changed while reading")
        count -= len(chunk)
        yield chunk


def _scan_tensor(fd: int, entry: HeaderEntry, whole: hashlib._Hash) -> TensorEntry:
    digest = hashlib.sha256()
    total, first, offset, largest = 0, -1, 0, _NO_EXPONENT
    for chunk in _chunks(fd, entry.end - entry.begin):
        whole.update(chunk)
        digest.update(chunk)
        found, at = count_non_finite(chunk, entry.dtype)
        if found and first < 0:
            first = offset + at
        total += found
        largest = max(largest, largest_exponent(chunk, entry.dtype))
        offset += len(chunk) * 8 // DTYPE_BITS[entry.dtype]
    return TensorEntry(*entry, digest.digest()[:DIGEST_BYTES], total, first, largest)


def digest_of(data: bytes | bytearray) -> bytes:
    """The digest a `TensorEntry` carries: half of the SHA-256, which processors have built in."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def largest_exponent(data: bytes, dtype: str) -> int:
    """The least e with every finite magnitude in little-endian bytes below 2**e; for dtypes other
    than F16, BF16, F32 and F64, and for zeros and subnormals, the least of the dtype."""
    if dtype not in _EXPONENT_MASKS:
        return _NO_EXPONENT
    import numpy as np  # after a fork, if there is one: it starts threads

    kind, mask = _EXPONENT_MASKS[dtype]
    words = np.frombuffer(data, dtype=kind)
    bits = words & words.dtype.type(mask)
    finite = bits if int(bits.max()) < mask else bits[bits < mask]
    lowest = mask & -mask  # the exponent's last bit
    biased = int(finite.max()) // lowest if len(finite) else 0
    return biased - mask // lowest // 2 + 1


def count_non_finite(data: bytes, dtype: str) -> tuple[int, int]:
    """`(count, first flat index)` of NaN and Inf in little-endian bytes; (0, -1) if none.

    Dtypes other than F16, BF16, F32 and F64 give (0, -1).
    """
    if dtype not in _EXPONENT_MASKS:
        return 0, -1
    import numpy as np

    kind, mask = _EXPONENT_MASKS[dtype]
    words = np.frombuffer(data, dtype=kind)
    bad = (words & words.dtype.type(mask)) == mask
    count = int(np.count_nonzero(bad))
    return (count, int(np.argmax(bad))) if count else (0, -1)
