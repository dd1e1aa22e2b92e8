"""Folders that one run at a time puts results into, as far as the system can see to it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT = 30.0  # seconds: a stranger who holds the lock of a shared folder stops nobody for ever
_LOOK = 0.02  # seconds between two tries


@contextlib.contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Hold the folders' locks. The system lets go of them when this process ends, however it does.

    A lock that can't be had is gone without: on a network disk without locks, in a folder that may
    not be read, and where somebody else holds it for half a minute.
    """
    with contextlib.ExitStack() as open_until_then:
        opened = []
        for folder in set(folders):
            with contextlib.suppress(OSError):
                fd = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                open_until_then.callback(os.close, fd)
                opened.append((os.fstat(fd).st_dev, os.fstat(fd).st_ino, fd))
        for *_, fd in sorted(opened):  # all runs in one order, so that no two wait for each other
            _lock(fd)
        yield


def _lock(fd: int) -> None:
    """Wait for the lock of an open folder; it ends with the descriptor."""
    deadline = time.monotonic() + _WAIT
    while fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return
            time.sleep(_LOOK)
        except OSError:  # this disk has no locks
            return
        else:
            return
