"""How much work something is, counted: a clock would also measure what else the machine does."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fail if more functions are called inside, of Python or of C, in this or a new thread."""
    count, before = itertools.count(), sys.getprofile()
    again = count.__next__

    def counted(frame: Any, event: str, arg: Any) -> None:
        again()  # for a call and for its return: to ask which it is would take as long again

    threading.setprofile(counted)
    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
    made = next(count) // 2
    assert made <= calls, f"{made:,} calls"
