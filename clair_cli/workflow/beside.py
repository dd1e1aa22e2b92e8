"""Reading the clients in a process of its own while this one imports torch.

Threads would not do: both want the interpreter's lock, thousands of times. What the other process
can't deliver (it was killed, say) is read here, so that nothing is lost but time.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import IO, Any, NoReturn, TypeVar

from clair_cli.own_process import is_ours
from clair_cli.workflow.pool import in_order

T = TypeVar("T")
R = TypeVar("R")


def may_fork() -> bool:
    """Whether a fork is safe here and gains anything: torch is still to be imported, and there is
    no other thread whose locks a copy would find closed. (macOS has such threads of its own.)"""
    alone = is_ours() and threading.active_count() == 1 and "torch" not in sys.modules
    return alone and sys.platform == "linux"


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Imports inside are not searched for garbage, which takes a tenth of torch's time; nor, in a
    process of our own, is what they made ever again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_ours():
            gc.freeze()
        if enabled:
            gc.enable()


def results_beside(
    function: Callable[[T], R],
    items: Sequence[T],
    threads: int,
    meanwhile: Callable[[], object],
    *,
    shared: object = None,
) -> Iterator[R]:
    """`map(function, items)` in a process of its own, which begins while `meanwhile` runs here.

    Args:
        function: its results can be pickled; it is called again here for what did not arrive.
        threads: of the other process, less one as long as `meanwhile` runs.
        shared: what both processes have, and results may hold: it arrives as itself.
    """
    results, busy = os.pipe(), os.pipe()
    try:
        child = os.fork()
    except OSError:  # no room for another process
        for end in (*results, *busy):
            os.close(end)
        yield from in_order(function, items, threads)
        return
    if child == 0:
        _serve(function, items, threads, results, busy, shared)
    os.close(results[1])
    os.close(busy[0])
    try:
        with open(results[0], "rb") as arriving:
            try:
                meanwhile()
            finally:
                os.close(busy[1])
            arrived = 0
            for result in _received(arriving, len(items), shared):
                arrived += 1
                yield result
            yield from in_order(function, items[arrived:], threads)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


class _Pickler(pickle.Pickler):
    """Leaves `shared` out."""

    def __init__(self, file: IO[bytes], shared: object) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._shared = shared

    def persistent_id(self, obj: object) -> str | None:
        return "shared" if obj is self._shared and obj is not None else None


class _Unpickler(pickle.Unpickler):
    """Puts `shared` in."""

    def __init__(self, file: IO[bytes], shared: object) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, pid: object) -> object:
        return self._shared


def _received(arriving: IO[bytes], total: int, shared: object) -> Iterator[Any]:
    """The results as they arrive, as many as do."""
    with contextlib.suppress(EOFError, pickle.UnpicklingError):
        for _ in range(total):
            yield _Unpickler(arriving, shared).load()


def _serve(
    function: Callable[[T], R],
    items: Sequence[T],
    threads: int,
    results: tuple[int, int],
    busy: tuple[int, int],
    shared: object,
) -> NoReturn:
    """The other process: send the results in order, and end without any trace."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        os.close(results[0])
        os.close(busy[1])
        made: SimpleQueue[bytes] = SimpleQueue()
        sender = threading.Thread(target=_send, args=(made, results[1]))
        sender.start()  # the pipe is small, and nobody reads it yet
        left = iter(items)
        for part, n in ((_while_busy(left, busy[0]), max(1, threads - 1)), (left, threads)):
            for result in in_order(function, part, n):
                data = io.BytesIO()
                _Pickler(data, shared).dump(result)
                made.put(data.getvalue())
        made.put(b"")
        sender.join()
        code = 0
    finally:
        os._exit(code)


def _send(made: SimpleQueue[bytes], results: int) -> None:
    try:
        with open(results, "wb") as out:
            while data := made.get():
                out.write(data)
                out.flush()
    except BrokenPipeError:  # nobody waits any more
        os._exit(1)


def _while_busy(left: Iterator[T], busy: int) -> Iterator[T]:
    """Items until the other end of a pipe is closed."""
    for item in left:
        yield item
        if select.select([busy], [], [], 0)[0]:
            return
