"""Objects that are written: each whole or not there, and none replaced unless that is wanted."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from clair_cli.store.address import Parts, RemotePath
from clair_cli.store.errors import ChangedError, StoreError, as_os_error
from clair_cli.store.objects import CHUNK_BYTES, ObjectStore, entry_of, interruptible, key_of
from clair_cli.text import quoted

SINGLE_BYTES = 32 * 2**20
"""Largest object that one request writes; a larger one is uploaded in parts under another name."""

PART_BYTES, PARTS_AT_ONCE = 8 * 2**20, 4

S3_COPY_BYTES = 5 * 2**30
"""Largest object that S3 copies to another name in one step."""


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
        self._begun = False
        self.tag: str | None = None

    def prepare(self) -> None:
        """Upload a large object, under a temporary name beside its own.

        Raises:
            StoreError: it is larger than what the store can give its own name.
        """
        content = self._content
        size = len(content) if isinstance(content, bytes) else os.stat(content).st_size
        if size <= SINGLE_BYTES:
            return
        shown = self._store.shown(self._parts)
        if shown.startswith("s3://") and size > S3_COPY_BYTES:
            raise StoreError(
                f"{quoted(self._parts[-1])} has {size:,} bytes, and S3 copies at most "
                f"{S3_COPY_BYTES:,}; write to this machine, and upload it with S3's own tools",
                shown,
            )
        name = f".{self._parts[-1][:150]}.clair-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._temporary = (*self._parts[:-1], name)
        import obstore

        with _as_os_errors(self._store.shown(self._temporary)):
            interruptible(
                obstore.put, self._store.connection, key_of(self._temporary), content,
                use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE,
            )  # fmt: skip

    def place(self) -> None:
        """Let the object appear, at once and whole. An answer can be lost on the way, and the next
        try then finds the object that the first one wrote: what is there decides.

        Raises:
            FileExistsError: an object of that key is there, with other bytes, and may not be
                replaced.
        """
        self._begun = True
        try:
            self.tag = self._written()
        except PermissionError:
            raise
        except OSError:
            with contextlib.suppress(OSError):
                self.tag = self._tag_of_ours()
            if self.tag is None:
                raise

    def _written(self) -> str:
        """Write the object under its own name; returns its ETag."""
        import obstore

        connection, key = self._store.connection, key_of(self._parts)
        shown, content = self._store.shown(self._parts), self._content
        if self._temporary is None:
            data = content.read_bytes() if isinstance(content, Path) else content
            mode = "overwrite" if self._replace else "create"
            with _as_os_errors(shown):
                made = interruptible(
                    obstore.put, connection, key, data, mode=mode, use_multipart=False
                )
            return entry_of({**made, "size": len(data)}, shown).tag
        with _as_os_errors(shown):
            interruptible(
                obstore.copy, connection, key_of(self._temporary), key, overwrite=self._replace
            )
        entry = self._store.head(self._parts)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown)
        return entry.tag

    def _tag_of_ours(self) -> str | None:
        """The ETag of what is there if it has the bytes that were to be written, else None."""
        entry, begin = self._store.head(self._parts), 0
        with _opened(self._content) as file:
            size = file.seek(0, os.SEEK_END)
            if entry is None or entry.size != size:
                return None
            file.seek(0)
            while part := file.read(CHUNK_BYTES):
                there = interruptible(
                    self._store.read, self._parts, entry, begin, begin + len(part)
                )
                if there != part:
                    return None
                begin += len(part)
        return entry.tag

    def is_ours(self) -> bool:
        """Whether the object is still the one that was placed."""
        entry = self._store.head(self._parts)
        return entry is not None and entry.tag == self.tag

    def undo(self) -> None:
        """Remove the object, unless it replaced another one, which is gone, or was replaced."""
        if self._replace or not self._begun:
            return
        if self.tag is None:  # nobody said whether it was written
            self.tag = self._tag_of_ours()
        if self.tag is not None and self.is_ours():
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


def _opened(content: bytes | Path) -> BinaryIO:
    return BytesIO(content) if isinstance(content, bytes) else content.open("rb")


@contextlib.contextmanager
def _as_os_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = as_os_error(error, shown)
        if isinstance(found, ChangedError):  # a condition that a store words so: it exists
            found = FileExistsError(17, os.strerror(17), shown)
        raise found from None
