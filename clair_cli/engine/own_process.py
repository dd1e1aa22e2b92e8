"""Whether this process runs one command of clair and nothing else: only the entry point knows.

A library must not fork a process that may hold anything, nor settle its memory and threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_ours = False
_raises = True  # whether a signal's handler may raise

helpers: set[int] = set()
"""Processes that this one started, and that must end with it."""

# Seconds for which a thread may keep the interpreter from the others. By default it is 5 ms, and
# each of a thread's short products waits for so long while another one is busy.
_SWITCH = 0.0003

# Numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def claim() -> None:
    """Say that it does."""
    global _ours
    _ours = True


def is_ours() -> bool:
    return _ours


@contextlib.contextmanager
def no_raising() -> Iterator[None]:
    """Code inside can't take an exception from a signal's handler: C++ that imports a Python module
    ends the process with SIGABRT."""
    global _raises
    before, _raises = _raises, False
    try:
        yield
    finally:
        _raises = before


def may_raise() -> bool:
    """Whether a signal's handler may raise; else it ends the process itself, by `end_at_once`."""
    return _raises


def end_at_once(code: int) -> None:
    """End the helpers and this process; no `finally` runs."""
    try:
        for helper in tuple(helpers):
            with contextlib.suppress(OSError):
                os.kill(helper, signal.SIGKILL)
                os.waitpid(helper, 0)
    finally:
        os._exit(code)


def settle() -> None:
    """Set up a process of our own for its work; before numpy is imported. Another is left as it is.

    Numpy comes with an OpenBLAS whose threads, which nothing here uses, spin for a tenth of a
    second after they were started.
    """
    if not _ours:
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.setswitchinterval(_SWITCH)
    _save_memory()


def _save_memory() -> None:
    """Let glibc give blocks of 8 MB and more back at once, and let all threads use what one of them
    freed. Other C libraries are left as they are."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 8 * 2**20)
    mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
    mallopt(_M_ARENA_MAX, 1)
