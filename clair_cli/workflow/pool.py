"""Modules in parallel, each on one thread: the same bytes for any number of threads.

Products and factorisations differ in the last bits between thread counts, so none ever has more
than one; what runs side by side are modules (and, for reading, clients), and results are taken
in order. The calling thread only waits, so that a signal is answered at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[str, int, int], None]

# Results that may wait, per thread: what is held in memory at once.
_AHEAD = 2


def available_threads() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map(function, items)` on several threads, a few items ahead of what is taken.

    An exception of one item comes when its turn does; what has not begun by then never does.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clair", initializer=_take_settings)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _take_settings() -> None:
    """Let torch's number of threads hold in this thread too: a product that is the first thing it
    computes would otherwise be split among all cores, and differ in the last bits."""
    ask = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if ask is not None:
        ask()


def told(results: Iterable[R], total: int, stage: str, tell: Tell) -> Iterator[R]:
    """The results; how many there are is told as `tell(stage, done, total)`."""
    tell(stage, 0, total)
    for done, result in enumerate(results, start=1):
        yield result
        tell(stage, done, total)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let every thread that is started inside compute on its own core only."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
