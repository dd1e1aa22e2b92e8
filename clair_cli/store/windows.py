"""Small reads of many files, grouped by place in the file: one request fetches a window, and the
reads that follow are answered from memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future

from clair_cli.store.address import Parts
from clair_cli.store.tree import Entry

WINDOW_BYTES, LEAST_WINDOW_BYTES = 2 * 2**20, 128 * 2**10
ROOM_BYTES = 256 * 2**20
"""Bytes of all windows in memory."""

_PER_FILE = 3  # windows that each file has room for: the one in use, the next, and one before

Read = Callable[[Parts, Entry, int, int], memoryview]
_Key = tuple[Parts, int, int]


class Windows:
    """Windows of objects, the least recently used of which make room for others.

    Args:
        read: fetches a range of an object; may be called by several threads at once.
        pool: fetches the window that follows one, while that one is in use.
        room: bytes of all windows in memory.
    """

    def __init__(self, read: Read, pool: Executor, room: int = ROOM_BYTES) -> None:
        self._read, self._pool, self._room = read, pool, room
        self._lock = threading.Lock()
        self._found: OrderedDict[_Key, Future[memoryview]] = OrderedDict()
        self._files: set[Parts] = set()

    def expect(self, parts: Parts) -> None:
        """Say that a file will be read. The more there are, the smaller is a window."""
        with self._lock:
            self._files.add(parts)

    @property
    def window_bytes(self) -> int:
        """Bytes of one window: so few that each file has room for some."""
        each = self._room // (_PER_FILE * max(1, len(self._files)))
        size = WINDOW_BYTES
        while size > max(each, LEAST_WINDOW_BYTES):
            size //= 2
        return size

    def fill(self, parts: Parts, entry: Entry, begin: int, memory: memoryview) -> None:
        """Fill memory with the bytes of a file from `begin` on; more than a window of them are
        fetched as they are.

        Raises:
            OSError: as `read` does.
        """
        size, end = self.window_bytes, begin + len(memory)
        if len(memory) > size:
            for start in range(begin, end, WINDOW_BYTES):
                stop = min(end, start + WINDOW_BYTES)
                memory[start - begin : stop - begin] = self._read(parts, entry, start, stop)
            return
        for place in range(begin // size, -(-end // size)):
            data, start = self._window((parts, size, place), entry), place * size
            first, last = max(begin, start), min(end, start + len(data))
            memory[first - begin : last - begin] = data[first - start : last - start]

    def _window(self, key: _Key, entry: Entry) -> memoryview:
        future, ours = self._begun(key)
        if ours:
            self._fetch(key, entry, future)
        found = future.result()
        following = (key[0], key[1], key[2] + 1)
        if following[2] * key[1] < entry.size and following not in self._found:
            ahead, new = self._begun(following)
            if new:
                self._pool.submit(self._fetch, following, entry, ahead)
        return found

    def _begun(self, key: _Key) -> tuple[Future[memoryview], bool]:
        """A window that is there or on its way, and whether the caller has to fetch it."""
        with self._lock:
            future = self._found.get(key)
            if future is not None:
                self._found.move_to_end(key)
                return future, False
            self._found[key] = future = Future()
            while len(self._found) > 1 and sum(k[1] for k in self._found) > self._room:
                self._found.popitem(last=False)
            return future, True

    def _fetch(self, key: _Key, entry: Entry, future: Future[memoryview]) -> None:
        parts, size, place = key
        begin = place * size
        try:
            future.set_result(self._read(parts, entry, begin, min(entry.size, begin + size)))
        except BaseException as error:
            with self._lock:  # whoever asks again tries again
                self._found.pop(key, None)
            future.set_exception(error)
