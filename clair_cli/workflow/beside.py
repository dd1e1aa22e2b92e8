"""Reading the clients in processes of their own while this one imports torch.

Threads would not do: all want the interpreter's lock, thousands of times. What another process
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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Any, NoReturn, TypeVar

from clair_cli.engine import own_process
from clair_cli.engine.own_process import is_ours
from clair_cli.engine.threads import in_order
from clair_cli.output.signals import held_signals

T = TypeVar("T")
R = TypeVar("R")

# Threads of one process: more would wait for the interpreter's lock.
_THREADS_EACH = 4


def may_fork() -> bool:
    """Whether a fork is safe here and gains anything: torch is still to be imported, and there is
    no other thread whose locks a copy would find closed. (macOS has such threads of its own.)"""
    alone = is_ours() and threading.active_count() == 1 and "torch" not in sys.modules
    return alone and sys.platform == "linux"


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import torch inside. No signal's handler raises meanwhile, since torch's C++ code would end
    the process: in a process of our own the handler ends it at once, elsewhere it waits.

    Garbage is not looked for, which takes a tenth of torch's time; nor, in a process of our own, is
    what was made inside ever searched again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with own_process.no_raising() if is_ours() else held_signals(lambda: False):
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
    begun: Callable[[int, int], object] | None = None,
) -> Iterator[R]:
    """`map(function, items)` in processes of their own, which begin while `meanwhile` runs here.

    Args:
        function: its results can be pickled; it is called again here for what did not arrive.
        threads: of the other processes together, less one as long as `meanwhile` runs.
        shared: what all processes have, and results may hold: it arrives as itself.
        begun: called in each of them first, with its number and how many there are.
    """
    count = max(1, min(threads // _THREADS_EACH, len(items)))
    helpers: list[_Helper] = []
    try:
        _fork_all(function, items, threads, count, helpers, meanwhile, shared, begun)
        if not helpers:
            yield from in_order(function, items, threads)
            return
        streams = [
            _results(function, items[i::count], threads, helpers[i : i + 1], shared)
            for i in range(count)
        ]
        for i in range(len(items)):
            yield next(streams[i % count])
    finally:
        for helper in helpers:
            helper.end()


def _fork_all(
    function: Callable[[T], R],
    items: Sequence[T],
    threads: int,
    count: int,
    helpers: list[_Helper],
    meanwhile: Callable[[], object],
    shared: object,
    begun: Callable[[int, int], object] | None,
) -> None:
    """Start as many helpers as there is room for, and do the other work while they are told that
    this process is busy."""
    busy = os.pipe()
    try:
        for i in range(count):
            own = max(1, threads // count + (i < threads % count))

            def serve(results: int, i: int = i, own: int = own) -> NoReturn:
                for other in helpers:
                    other.arriving.close()
                os.close(busy[1])
                if begun is not None:
                    begun(i, count)
                first = max(1, own - 1) if i == 0 else own
                _serve(function, items[i::count], (first, own), results, busy[0], shared)

            helper = _fork(serve)
            if helper is None:
                break
            helpers.append(helper)
        if helpers:
            meanwhile()
    finally:
        for end in busy:
            os.close(end)


@dataclass(frozen=True)
class _Helper:
    """Another process.

    Attributes:
        arriving: what it sends.
    """

    child: int
    arriving: IO[bytes]

    def end(self) -> None:
        self.arriving.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        own_process.helpers.discard(self.child)


def _fork(serve: Callable[[int], NoReturn]) -> _Helper | None:
    """A process that serves into a pipe; None where there is no room for one."""
    ours, theirs = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return None
    if child == 0:
        try:
            os.close(ours)
            serve(theirs)
        finally:
            os._exit(1)
    own_process.helpers.add(child)
    os.close(theirs)
    return _Helper(child, open(ours, "rb"))


def _results(
    function: Callable[[T], R],
    items: Sequence[T],
    threads: int,
    helper: Sequence[_Helper],
    shared: object,
) -> Iterator[R]:
    """What a helper, if there is one, delivers of some items, and the others' results."""
    arrived = 0
    for one in helper:
        for result in _received(one.arriving, len(items), shared):
            arrived += 1
            yield result
    yield from in_order(function, items[arrived:], threads)


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
    threads: tuple[int, int],
    results: int,
    busy: int,
    shared: object,
) -> NoReturn:
    """The other process: send the results in order, and end without any trace.

    Args:
        threads: while the first process is busy, and then.
    """
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        made: SimpleQueue[bytes] = SimpleQueue()
        sender = threading.Thread(target=_send, args=(made, results))
        sender.start()  # the pipe is small, and nobody reads it yet
        left = iter(items)
        for part, n in zip((_while_busy(left, busy), left), threads, strict=True):
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
