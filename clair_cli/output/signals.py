"""Signals that wait while files are put in place: their handlers run behind the block, not in it.

A handler that raises may do so anywhere, between two renames and in the middle of a clean-up too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: not on Windows


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP; what arrives inside acts at the end.

    Outside the main thread nothing is held: Python runs handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    with contextlib.ExitStack() as at_the_end:  # the last of its callbacks comes first
        at_the_end.callback(_raise_again, arrived)
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            at_the_end.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, note)
        yield


def _raise_again(arrived: list[int]) -> None:
    for number in arrived:
        signal.raise_signal(number)
