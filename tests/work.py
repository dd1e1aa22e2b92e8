"""How much work something is, counted: a clock would also measure what else the machine does."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fail if more functions are called inside, of Python or of C, in this or a new thread."""
    # A function of Python would take most of the time: this is C's, counts how often it is called,
    # and does nothing. It is called for each call and each return.
    before, counted = sys.getprofile(), functools.lru_cache(maxsize=0)("".format)
    threading.setprofile(counted)
    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
    made = counted.cache_info().misses // 2
    assert made <= calls, f"{made:,} calls"
