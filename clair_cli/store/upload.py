"""Objects that are written: each whole or not there, and none replaced unless that is wanted."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from clair_cli.store.address import Parts, RemotePath
from clair_cli.store.errors import ChangedError, as_os_error
from clair_cli.store.objects import ObjectStore, interruptible, key_of

SINGLE_BYTES = 32 * 2**20
"""Largest object that one request writes; a larger one is uploaded in parts under another name."""

PART_BYTES, PARTS_AT_ONCE = 8 * 2**20, 4


class Upload:
    """One new object on its way.

    Args:
        store: made for writing.
        parts: its key.
        content: its bytes, or the file that has them.
        replace: whether an object of that key may be replaced.

    Raises:
        OSError: the store refuses; of every method.
    """

    def __init__(
        self, store: ObjectStore, parts: Parts, content: bytes | Path, *, replace: bool
    ) -> None:
        self._store, self._parts, self._content = store, parts, content
        self._replace = replace
        self._temporary: Parts | None = None
        self.tag: str | None = None

    def prepare(self) -> None:
        """Upload a large object, under a temporary name beside its own."""
        content = self._content
        size = len(content) if isinstance(content, bytes) else os.stat(content).st_size
        if size <= SINGLE_BYTES:
            return
        name = f".{self._parts[-1][:150]}.clair-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._temporary = (*self._parts[:-1], name)
        import obstore

        with _as_os_errors(self._store.shown(self._temporary)):
            interruptible(
                obstore.put, self._store.connection, key_of(self._temporary), content,
                use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE,
            )  # fmt: skip

    def place(self) -> None:
        """Let the object appear, at once and whole.

        Raises:
            FileExistsError: an object of that key is there, and may not be replaced.
        """
        import obstore

        connection, key = self._store.connection, key_of(self._parts)
        small = self._temporary is None
        content = self._content
        data = content.read_bytes() if small and isinstance(content, Path) else content
        with _as_os_errors(self._store.shown(self._parts)):
            if self._temporary is None:
                mode = "overwrite" if self._replace else "create"
                interruptible(obstore.put, connection, key, data, mode=mode, use_multipart=False)
            else:
                interruptible(
                    obstore.copy, connection, key_of(self._temporary), key,
                    overwrite=self._replace,
                )  # fmt: skip
        entry = self._store.head(self._parts)
        self.tag = None if entry is None else entry.tag

    def is_ours(self) -> bool:
        """Whether the object is still the one that was placed."""
        entry = self._store.head(self._parts)
        return entry is not None and entry.tag == self.tag

    def undo(self) -> None:
        """Remove the object, unless it replaced another one, which is gone, or was replaced."""
        if self.tag is not None and not self._replace and self.is_ours():
            remove(self._store, self._parts)

    def clean_up(self) -> None:
        """Remove what has a temporary name."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                remove(self._store, self._temporary)
            self._temporary = None


def remove(store: ObjectStore, parts: Parts) -> None:
    """Remove an object; none of that key is fine.

    Raises:
        OSError: the store refuses.
    """
    import obstore

    with contextlib.suppress(FileNotFoundError), _as_os_errors(store.shown(parts)):
        interruptible(obstore.delete, store.connection, key_of(parts))


def writable(path: RemotePath) -> ObjectStore:
    """The store that an address is in, for writing; no request is made yet."""
    return ObjectStore(path, to_write=True)


@contextlib.contextmanager
def _as_os_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = as_os_error(error, shown)
        if isinstance(found, ChangedError):  # a condition that a store words so: it exists
            found = FileExistsError(17, os.strerror(17), shown)
        raise found from None
