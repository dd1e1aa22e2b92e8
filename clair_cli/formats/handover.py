"""Bytes of files on their way from who checks them to who computes, often another process.

In memory that both share: what was hashed is what is computed with, and is not read and hashed
again, however often it is looked at.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE


class Handover:
    """Memory that a process makes, and it or its child fills.

    Args:
        room: in bytes; what is not filled takes no memory.
        by_child: whether children that are still to be forked fill it. The process that made it
            then doesn't know what is filled, and fills nothing.

    Raises:
        OSError: the system has no such memory.
    """

    def __init__(self, room: int, *, by_child: bool) -> None:
        self._memory = mmap.mmap(-1, room)
        self._room, self._filled, self._lock = room, 0, threading.Lock()
        self._barred = os.getpid() if by_child else None

    def take_part(self, index: int, count: int) -> None:
        """Fill no more than this process's part: of several that fill it, each has its own."""
        each = self._room // count // _PAGE * _PAGE
        self._filled, self._room = index * each, (index + 1) * each

    def reserve(self, size: int) -> HandedOver | None:
        """Room for one file's data; None if there is none left, or this process may not fill it."""
        if os.getpid() == self._barred:
            return None
        with self._lock:
            start = self._filled
            if start + size > self._room:
                return None
            self._filled += -(-size // _PAGE) * _PAGE
            return HandedOver(self, start)

    def room(self, start: int, stop: int) -> memoryview:
        """What is to be filled, after `reserve`, or was."""
        return memoryview(self._memory)[start:stop]


@dataclass(frozen=True)
class HandedOver:
    """One file's data in a `Handover`.

    Attributes:
        start: where it begins, at the start of a page.
    """

    memory: Handover
    start: int

    def room(self, begin: int, end: int) -> memoryview:
        """Where a tensor's bytes are to go, and then lie."""
        return self.memory.room(self.start + begin, self.start + end)
