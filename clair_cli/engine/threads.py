"""Threads, each of which works on one module (or reads one client) at a time: the same bytes for
any number of threads.

Products and factorisations on several threads differ in the last bits from those on one thread, so
each runs on a single thread, and results are taken in order. The calling thread only waits, so that
a signal is answered at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clair_cli.settings import Progress

T = TypeVar("T")
R = TypeVar("R")

# Items per thread that are in memory at once: in progress, or finished and not yet taken.
_AHEAD = 2


def available_threads() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A pool of threads for many calls: torch's libraries allocate buffers for each new thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="clair", initializer=_take_settings
        )

    def in_order(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`map(function, items)` on the threads, a few items ahead of the results taken so far.

        An exception in one item is raised in place of its result, and items that have not been
        started by then are dropped.
        """
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) >= _AHEAD * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def start(self, function: Callable[[T], R], items: Iterable[T]) -> list[Future[R]]:
        """Put all items in the queue, and return their futures at once."""
        return [self._pool.submit(function, item) for item in items]

    def close(self) -> None:
        """Start no more items, and do not wait for items in progress."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`Workers.in_order` on new threads, which end after these items."""
    workers = Workers(threads)
    try:
        yield from workers.in_order(function, items)
    finally:
        workers.close()


def _take_settings() -> None:
    """Apply torch's number of threads to this thread too: its first product would otherwise be
    split among all cores, and differ in the last bits."""
    ask = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if ask is not None:
        ask()


def reported(results: Iterable[R], total: int, stage: str, progress: Progress) -> Iterator[R]:
    """The results, with `progress(stage, done, total)` called before the first and after each."""
    progress(stage, 0, total)
    for done, result in enumerate(results, start=1):
        yield result
        progress(stage, done, total)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Context in which torch uses one core in every thread that is started."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
