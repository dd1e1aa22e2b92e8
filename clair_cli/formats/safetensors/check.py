"""The check of a stranger's safetensors file: strict header, one sequential pass over the bytes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from clair_cli.errors import RejectedClient
from clair_cli.formats.files import sniff
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.safetensors.header import DTYPE_BITS, HeaderEntry, parse_header
from clair_cli.formats.safetensors.reader import KeptBytes, SafetensorsFile
from clair_cli.formats.safetensors.source import DIGEST_BYTES, TensorEntry, runs
from clair_cli.formats.stores import open_stream
from clair_cli.store.address import Place
from clair_cli.store.protocol import Stream

CHUNK_BYTES = 2 * 1024 * 1024


def open_safetensors(
    path: Place,
    limits: Limits,
    *,
    shown: str | None = None,
    root: Place | None = None,
    memory: KeptBytes | None = None,
) -> SafetensorsFile:
    """Check a file from a stranger, in one sequential pass over its bytes.

    Args:
        path: the file; its last component may not be a link.
        limits: sizes to refuse; checked before anything of that size is read.
        shown: the path for error objects, when it is not `path`.
        root: as in `open_regular`, for later reads too.
        memory: keeps the tensors' bytes, if it has room.

    Returns:
        The file with its header, a digest of every tensor, and counts of non-finite values.

    Raises:
        RejectedClient: unreadable, not a regular file, not exactly a safetensors file, too
            large, or changed while it was read. `path` is set.
    """
    if sys.byteorder != "little":
        raise RejectedClient("safetensors files are read on little-endian machines only")
    shown = path.as_posix() if shown is None else shown
    try:
        with open_stream(path, shown, root) as stream:
            if stream.size > limits.max_file_bytes:
                raise RejectedClient(
                    f"file has {stream.size:,} bytes, above the limit of {limits.max_file_bytes:,}",
                    found=f"{stream.size:,} bytes",
                    expected=f"at most {limits.max_file_bytes:,} bytes",
                    hint=remedy("file"),
                )
            found = _scan(stream, limits, memory)
            return replace(found, path=path, shown=shown, root=root)
    except RejectedClient as error:
        error.path = error.path or shown
        raise


def _scan(stream: Stream, limits: Limits, memory: KeptBytes | None) -> SafetensorsFile:
    whole, size = hashlib.sha256(), stream.size
    header = _read_header(stream, limits)
    whole.update(len(header).to_bytes(8, "little"))
    whole.update(header)
    metadata, entries = parse_header(header, size - 8 - len(header), limits)
    start = 8 + len(header)
    kept = None if memory is None else memory.take(size - start)
    tensors = {}
    for run in runs(entries, CHUNK_BYTES):
        begin, end = run[0].begin, run[-1].end
        chunks = _chunks(stream, end - begin, None if kept is None else kept[begin:end])
        for entry, pieces in _pieces(run, _hashed(chunks, whole)):
            tensors[entry.name] = _looked_at(entry, pieces)
    if stream.has_changed():
        raise RejectedClient("file changed while reading")
    return SafetensorsFile(
        whole.hexdigest(), metadata, tensors, start, size, stream.stamp, kept=kept
    )


def _read_header(stream: Stream, limits: Limits) -> bytes:
    """The header's JSON bytes; a wrong length is explained by what the file really is."""
    size = stream.size
    if size == 0:
        raise RejectedClient("file is empty (0 bytes)", found="0 bytes")
    start = stream.read(min(size, 512))
    length = int.from_bytes(start[:8], "little")
    if size >= 8 and length <= min(size - 8, limits.max_header_bytes) and start[8:9] == b"{":
        stream.seek(8)
        header = stream.read(length)
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


def _chunks(stream: Stream, count: int, into: memoryview | None) -> Iterator[bytes | memoryview]:
    """Read `count` bytes in chunks, into the given memory or into new memory."""
    while count:
        size = min(count, CHUNK_BYTES)
        if into is None:
            chunk: bytes | memoryview = stream.read(size)
        else:
            chunk, into = into[:size], into[size:]
            chunk = chunk[: stream.read_into(chunk)]
        if len(chunk) != size:
            raise RejectedClient("file changed while reading")
        count -= size
        yield chunk


def _hashed(chunks: Iterator[bytes | memoryview], whole: hashlib._Hash) -> Iterator[memoryview]:
    for chunk in chunks:
        whole.update(chunk)
        yield memoryview(chunk)


def _pieces(
    run: Sequence[HeaderEntry], chunks: Iterator[memoryview]
) -> Iterator[tuple[HeaderEntry, Iterable[memoryview]]]:
    """Each tensor of a run with its bytes: a tensor that is alone may have several chunks."""
    if len(run) == 1:
        yield run[0], chunks
        return
    (chunk,) = chunks
    for entry in run:
        yield entry, [chunk[entry.begin - run[0].begin : entry.end - run[0].begin]]


def _looked_at(entry: HeaderEntry, chunks: Iterable[memoryview]) -> TensorEntry:
    # imported where numpy is needed: it starts threads
    from clair_cli.formats.safetensors.elements import NO_EXPONENT, look_at

    digest = hashlib.sha256()
    total, first, offset, largest = 0, -1, 0, NO_EXPONENT
    for chunk in chunks:
        digest.update(chunk)
        found, at, exponent = look_at(chunk, entry.dtype)
        if found and first < 0:
            first = offset + at
        total += found
        largest = max(largest, exponent)
        offset += len(chunk) * 8 // DTYPE_BITS[entry.dtype]
    return TensorEntry(*entry, digest.digest()[:DIGEST_BYTES], total, first, largest)
