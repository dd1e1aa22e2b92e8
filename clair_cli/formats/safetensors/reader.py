"""A safetensors file that passed the check (check.py): its tensors' bytes on demand.

Nothing is mapped into memory, so that a file cut short by its owner ends in a message and not
in a dead process. What is judged is what is merged: each later read compares digests, unless the
bytes that were checked were kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.files import open_regular, read_into
from clair_cli.formats.safetensors.source import TensorEntry, digest_of
from clair_cli.text import quoted


class KeptBytes:
    """A budget of memory for the bytes of checked files, which need not be read and hashed again.

    Args:
        room: in bytes, for all files together.
    """

    def __init__(self, room: int) -> None:
        self._left, self._lock = room, threading.Lock()

    def take(self, size: int) -> memoryview | None:
        """Memory of `size` bytes for the tensors of one file; None if too little is left."""
        with self._lock:
            if size > self._left:
                return None
            self._left -= size
        return memoryview(bytearray(size))


@dataclass(frozen=True)
class SafetensorsFile:
    """A file that passed the check, as a `TensorSource`. Keeps no descriptor open.

    Attributes:
        path: what `raw` opens.
        sha256: of all bytes of the file, hex.
        metadata: the header's `__metadata__`, or {}.
        tensors: by name, in the order of their bytes.
        data_start: where the header ends, in bytes.
        size: of the file, in bytes.
        stamp: of the file when it was checked; see `stamp_of`.
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

    def raw(self, *keys: str) -> memoryview:
        """See `TensorSource.raw`: from memory where the file looks unchanged, else read again and
        compared with the digests."""
        entries = [self.tensors[key] for key in keys]
        begin, end = entries[0].begin, entries[-1].end
        assert sum(e.end - e.begin for e in entries) == end - begin, "tensors that are apart"
        if self.kept is not None and self._looks_unchanged():
            return self.kept[begin:end]
        data = memoryview(bytearray(end - begin))
        with self._opened(keys[0]) as fd:
            os.lseek(fd, self.data_start + begin, os.SEEK_SET)
            read_into(fd, data)
        for entry in entries:
            if digest_of(data[entry.begin - begin : entry.end - begin]) != entry.digest:
                raise self._changed(entry.name)
        return data

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """See `TensorSource.part`."""
        entry = self.tensors[key]
        if self.kept is not None and self._looks_unchanged():
            return self.kept[entry.begin + begin : entry.begin + end]
        data = memoryview(bytearray(end - begin))
        with self._opened(key) as fd:
            os.lseek(fd, self.data_start + entry.begin + begin, os.SEEK_SET)
            read_into(fd, data)
        return data

    def check_unchanged(self) -> None:
        """For bytes that were copied from `raw` and are used since.

        Raises:
            RejectedClient: the path no longer leads to the file that was checked, or its size or
                time of change is another.
        """
        if not self._looks_unchanged():
            raise self._changed()

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        """A descriptor of the file, if it has the size that was checked.

        Args:
            key: the tensor to read, for the error.

        Raises:
            RejectedClient: the file is gone, has another size, or can't be read.
        """
        with open_regular(self.path, self.shown, self.root) as (fd, status):
            if status.st_size != self.size:
                raise self._changed(key)
            yield fd

    def _looks_unchanged(self) -> bool:
        try:
            return stamp_of(os.stat(self.path, follow_symlinks=False)) == self.stamp
        except OSError:
            return False

    def _changed(self, key: str | None = None) -> RejectedClient:
        name = quoted(os.path.basename(self.shown))
        where = "" if key is None else f" tensor {quoted(key)}"
        return RejectedClient(f"{name} changed while reading{where}", path=self.shown)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size and time of change: a file that was written to, or another one at the
    same path, has another stamp."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
