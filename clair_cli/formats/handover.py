"""Bytes of files on their way from the process that checks them to the one that computes.

In memory that both share: what was hashed is what arrives, and is not read and hashed again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE


class Handover:
    """Shared memory that a process makes before it forks, and its child fills.

    Args:
        room: in bytes; what is not filled takes no memory.

    Raises:
        OSError: the system has no such memory.
    """

    def __init__(self, room: int) -> None:
        self._memory = mmap.mmap(-1, room)
        self._room, self._filled, self._lock = room, 0, threading.Lock()
        self._maker = os.getpid()

    def reserve(self, size: int) -> HandedOver | None:
        """Room for one file's data; None if there is none left, and in the process that made it:
        it does not know what is filled."""
        if os.getpid() == self._maker:
            return None
        with self._lock:
            start = self._filled
            if start + size > self._room:
                return None
            self._filled += -(-size // _PAGE) * _PAGE
            return HandedOver(self, start, set())

    def room(self, start: int, stop: int) -> memoryview:
        """What is to be filled, after `reserve`."""
        return memoryview(self._memory)[start:stop]

    def take(self, start: int, stop: int) -> bytearray:
        """What was put there; its pages go back to the system, so it can't be taken again."""
        data = bytearray(self.room(start, stop))
        first, end = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
        if end > first and hasattr(mmap, "MADV_REMOVE"):
            with contextlib.suppress(OSError):  # then it stays until the process ends
                self._memory.madvise(mmap.MADV_REMOVE, first, end - first)
        return data


@dataclass(frozen=True)
class HandedOver:
    """One file's data in a `Handover`.

    Attributes:
        start: where it begins.
        left: names of the tensors that were not taken yet.
    """

    memory: Handover
    start: int
    left: set[str]

    def room(self, begin: int, end: int) -> memoryview:
        """Where a tensor's bytes are to go."""
        return self.memory.room(self.start + begin, self.start + end)

    def take(self, name: str, begin: int, end: int) -> bytearray | None:
        """A tensor's bytes, once."""
        try:
            self.left.remove(name)
        except KeyError:
            return None
        return self.memory.take(self.start + begin, self.start + end)
