"""A safetensors file that passed the check (check.py): its tensors' bytes on demand.

Nothing is mapped into memory, so that a file cut short by its owner ends in a message and not
in a dead process. What is judged is what is merged: each later read compares digests, unless the
bytes that were checked were kept.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.safetensors.source import TensorEntry, digest_of
from clair_cli.formats.stores import store_of
from clair_cli.store.address import Place
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
        sha256: of all bytes of the file, hex.
        metadata: the header's `__metadata__`, or {}.
        tensors: by name, in the order of their bytes.
        data_start: where the header ends, in bytes.
        size: of the file, in bytes.
        stamp: of the file when it was checked; see `Stream.stamp`.
        kept: the tensors' bytes as they were checked, if there was room for them.
        path: what `raw` opens.
        shown: the path as error objects carry it.
        root: as in `open_regular`.
    """

    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    data_start: int
    size: int
    stamp: object
    kept: memoryview | None = None
    path: Place = Path()
    shown: str = ""
    root: Place | None = None

    def raw(self, *keys: str) -> memoryview:
        """See `TensorSource.raw`: from memory where the file looks unchanged, else read again and
        compared with the digests."""
        entries = [self.tensors[key] for key in keys]
        begin, end = entries[0].begin, entries[-1].end
        assert sum(e.end - e.begin for e in entries) == end - begin, "tensors that are apart"
        if self.kept is not None and self._looks_unchanged():
            return self.kept[begin:end]
        data = self._range(begin, end, keys[0])
        for entry in entries:
            if digest_of(data[entry.begin - begin : entry.end - begin]) != entry.digest:
                raise self._changed(entry.name)
        return data

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """See `TensorSource.part`."""
        entry = self.tensors[key]
        if self.kept is not None and self._looks_unchanged():
            return self.kept[entry.begin + begin : entry.begin + end]
        return self._range(entry.begin + begin, entry.begin + end, key)

    def check_unchanged(self) -> None:
        """For bytes that were copied from `raw` and are used since.

        Raises:
            RejectedClient: the path no longer leads to the file that was checked, or its size or
                time of change is another.
        """
        if not self._looks_unchanged():
            raise self._changed()

    def _range(self, begin: int, end: int, key: str) -> memoryview:
        """Bytes of the tensors, read from the file if it has the size that was checked.

        Args:
            key: the tensor to read, for the error.

        Raises:
            RejectedClient: the file is gone, has another size, or can't be read.
        """
        data = memoryview(bytearray(end - begin))
        store = store_of(self.path, self.root)
        place = self.data_start + begin
        if not store.range(self.path, self.shown, self.stamp, place, data):
            raise self._changed(key)
        return data

    def _looks_unchanged(self) -> bool:
        return store_of(self.path, self.root).is_unchanged(self.path, self.stamp)

    def _changed(self, key: str | None = None) -> RejectedClient:
        name = quoted(os.path.basename(self.shown))
        where = "" if key is None else f" tensor {quoted(key)}"
        return RejectedClient(f"{name} changed while reading{where}", path=self.shown)
