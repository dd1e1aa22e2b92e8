"""A store of objects behind an address: listing, and reads pinned to what the listing saw."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from clair_cli.errors import RejectedClient
from clair_cli.store.address import Parts, RemotePath
from clair_cli.store.connect import connect
from clair_cli.store.errors import ChangedError, StoreError, as_os_error
from clair_cli.store.tree import Entry
from clair_cli.store.windows import Windows
from clair_cli.text import quoted

CHUNK_BYTES = 4 * 2**20
"""Bytes of one request of a sequential read."""

REQUESTS = 16
"""Requests at one time that no reader waits for: chunks and windows fetched ahead."""

T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="clair-store")


def interruptible(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a function on another thread if this is the main one, which answers signals."""
    if threading.current_thread() is not threading.main_thread():
        return function(*args, **options)
    return _pool().submit(function, *args, **options).result()


class ObjectStore:
    """The objects of one bucket, container or host, as a `Store` of places.

    Args:
        path: any address in it.
    """

    def __init__(self, path: RemotePath, *, to_write: bool = False) -> None:
        self._root = replace(path, parts=(), tree=None)
        self._to_write = to_write
        self.connection = connect(path, to_write=to_write)
        self.windows = Windows(self.read, _pool())

    def __reduce__(self) -> tuple[object, ...]:
        """Another process connects itself, once to each bucket."""
        return _connected, (self._root, self._to_write)

    def shown(self, parts: Parts) -> str:
        """The address of a key, for errors."""
        return str(replace(self._root, parts=parts))

    def head(self, parts: Parts) -> Entry | None:
        """Size and ETag of one object; None where there is none.

        Raises:
            OSError: the store fails, or gives no ETag to pin reads to.
        """
        import obstore

        try:
            meta = interruptible(obstore.head, self.connection, key_of(parts))
        except Exception as error:
            found = as_os_error(error, self.shown(parts))
            if isinstance(found, FileNotFoundError):
                return None
            raise found from None
        return entry_of(meta, self.shown(parts))

    def read(self, parts: Parts, entry: Entry, begin: int, end: int) -> memoryview:
        """A range of an object as it was when it was listed.

        Raises:
            ChangedError: it is another one now.
            OSError: the store fails.
        """
        import obstore

        options: Any = {"if_match": entry.tag, "range": (begin, end)}
        try:
            data = obstore.get(self.connection, key_of(parts), options=options).bytes()
        except Exception as error:
            found = as_os_error(error, self.shown(parts))
            if isinstance(found, FileNotFoundError):
                found = ChangedError("changed while reading", self.shown(parts))
            raise found from None
        if len(data) != end - begin:
            raise ChangedError("changed while reading", self.shown(parts))
        return memoryview(data)

    # As a `Store`

    def list(self, folder: RemotePath) -> Sequence[str]:
        return [path.name for path in folder.iterdir()]

    @contextmanager
    def stream(self, file: RemotePath, shown: str) -> Iterator[ObjectStream]:
        name = quoted(file.name)
        with _rejecting(name, shown):
            entry = file.entry()
            if entry is None:
                if file.is_dir():
                    raise RejectedClient(
                        f"{name} is a folder, not a regular file", path=shown, found="a folder",
                        expected="a regular file",
                    )  # fmt: skip
                raise FileNotFoundError(2, "No such file or directory", shown)
            self.windows.expect(file.parts)
            stream = ObjectStream(self, file.parts, entry)
            try:
                yield stream
            finally:
                stream.close()

    def range(
        self, file: RemotePath, shown: str, stamp: Entry, begin: int, memory: memoryview
    ) -> bool:
        with _rejecting(quoted(file.name), shown):
            try:
                self.windows.fill(file.parts, stamp, begin, memory)
            except ChangedError:
                return False
        return True

    def is_unchanged(self, file: RemotePath, stamp: Entry) -> bool:
        """Kept bytes are those of the object that all later reads are pinned to."""
        return True


@cache
def _connected(root: RemotePath, to_write: bool) -> ObjectStore:
    return ObjectStore(root, to_write=to_write)


@contextmanager
def _rejecting(name: str, shown: str) -> Iterator[None]:
    """Raise what a store answers as the rejection of the client whose file it is."""
    try:
        yield
    except ChangedError:
        raise RejectedClient(f"{name} changed while reading", path=shown) from None
    except OSError as error:
        reason = str(error.strerror)
        raise RejectedClient(f"{name} is unreadable: {reason}", path=shown, found=reason) from None


class ObjectStream:
    """An object read once from its begin to its end, a chunk ahead of what was asked for."""

    def __init__(self, store: ObjectStore, parts: Parts, entry: Entry) -> None:
        self._store, self._parts, self.stamp = store, parts, entry
        self.size = entry.size
        self._at = self._begin = 0
        self._chunk = memoryview(b"")
        self._ahead: Future[memoryview] | None = None

    def seek(self, position: int) -> None:
        assert self._begin == 0, "the begin is gone"
        self._at = position

    def read(self, count: int) -> bytes:
        parts = []
        while count and (some := self._some(count)):
            parts.append(some)
            count -= len(some)
        return b"".join(parts)

    def read_into(self, memory: memoryview) -> int:
        found = 0
        while found < len(memory) and (some := self._some(len(memory) - found)):
            memory[found : found + len(some)] = some
            found += len(some)
        return found

    def has_changed(self) -> bool:
        """Never: a changed object is not read at all."""
        return self._at != self.size

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()

    def _some(self, most: int) -> memoryview:
        """The next bytes of the chunk in memory, or of the next one; empty at the end."""
        end = self._begin + len(self._chunk)
        if self._at == end and end < self.size:
            self._begin, self._chunk = end, self._next(end)
        start = self._at - self._begin
        some = self._chunk[start : start + most]
        self._at += len(some)
        return some

    def _next(self, begin: int) -> memoryview:
        ahead, self._ahead = self._ahead, None
        chunk = self._fetch(begin) if ahead is None else ahead.result()
        following = begin + CHUNK_BYTES
        if begin and following < self.size:  # of a bad header no more than the first is fetched
            self._ahead = _pool().submit(self._fetch, following)
        return chunk

    def _fetch(self, begin: int) -> memoryview:
        end = min(self.size, begin + CHUNK_BYTES)
        return self._store.read(self._parts, self.stamp, begin, end)


def key_of(parts: Parts) -> str:
    return "/".join(parts)


def entry_of(meta: Any, shown: str) -> Entry:
    """What a store says of an object.

    Args:
        meta: obstore's.
        shown: the object's address.

    Raises:
        StoreError: it gives no ETag, or a weak one, to which no read can be pinned.
    """
    tag = meta["e_tag"]
    if not tag or tag.startswith("W/"):
        raise StoreError(
            "the store gives no strong ETag, so a change while reading would not be seen", shown
        )
    return Entry(meta["size"], tag if tag.startswith('"') else f'"{tag}"')  # as Azure lists them
