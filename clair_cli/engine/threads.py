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

from clair_cli.settings import Progress

T = TypeVar("T")
R = TypeVar("R")

# Items per thread that have begun or wait with a result: so many are in memory at once.
_AHEAD = 2


def available_threads() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A pool of threads for many calls: each thread has buffers of its own in torch's libraries."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="clair", initializer=_take_settings
        )

    def in_order(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`map(function, items)` on the threads, a few items ahead of what is taken.

        An exception of one item comes when its turn does; what has not begun by then never does.
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
        """Begin nothing more, and wait for nothing that has begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`Workers.in_order` on threads that are there for these items only."""
    workers = Workers(threads)
    try:
        yield from workers.in_order(function, items)
    finally:
        workers.close()


def _take_settings() -> None:
    """Make torch's number of threads hold in this thread too: its first product would otherwise be
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
    """Limit torch to one core in every thread that is started inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
