"""Signals that wait while files are put in place: they are noticed between two steps, not in one.

A signal handler that raises may do so anywhere, in the middle of a clean-up too. Here it raises
where the publisher says, so that what is half-done is always either finished or removed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: not on Windows


class _StopError(BaseException):
    """Unwinds for a signal whose default action ends the process."""


class HeldSignals:
    """What arrived while signals were held.

    Outside the main thread nothing is held: Python runs handlers in the main thread only, so
    they disturb nothing here.
    """

    def __init__(self) -> None:
        self._arrived: list[int] = []
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Let a signal that arrived act now: its handler may raise. Cleaning up is the caller's."""
        for number in self._taken():
            handler = self._before.get(number)
            if callable(handler):
                handler(number, None)
            else:  # the default action: at the very end, by the system
                self._arrived.append(number)
                raise _StopError

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Signals act at once inside, as they did before they were held."""
        self._put_back()
        try:
            for number in self._taken():
                signal.raise_signal(number)
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._note)

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:  # else somebody else set it meanwhile
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _taken(self) -> list[int]:
        taken, self._arrived = self._arrived, []
        return taken


@contextlib.contextmanager
def held_signals(done: Callable[[], bool]) -> Iterator[HeldSignals]:
    """Hold SIGINT, SIGTERM and SIGHUP; what arrived and was not seen by `check` acts at the end.

    Args:
        done: whether the results are in place. What a late signal raises then says so: it has
            a true attribute `published`.
    """
    held = HeldSignals()
    try:
        held._hold()
        yield held
    except _StopError:
        pass  # raised again below, by the signal itself
    finally:
        try:
            held._put_back()
            for number in held._taken():
                signal.raise_signal(number)
        except BaseException as stop:
            held._put_back()  # if one came while they were put back
            vars(stop)["published"] = done()
            raise
