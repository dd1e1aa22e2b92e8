"""What a run computes with: the device, the threads, and who is told how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from clair_cli.engine.threads import Tell, Workers, available_threads, told
from clair_cli.errors import UsageError
from clair_cli.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

_lanes = threading.local()

# Threads that give a GPU its work: each has a stream. More would only wait for the interpreter.
_LANES = 4
# Bytes of a device that does not say how many it has.
_MEMORY = 8 * 2**30


@dataclass(frozen=True)
class Device:
    """Where the products run, and how exactly."""

    name: str
    dtype: torch.dtype

    @property
    def pinned(self) -> bool:
        """Whether what is sent there should lie in page-locked memory."""
        return self.name == "cuda"

    @property
    def memory(self) -> int:
        """Bytes that it has: not those which are free, for the same run is to be the same."""
        if self.name != "cuda":
            return _MEMORY
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def wait(self) -> None:
        """Until this thread's stream has done what it was given."""
        if self.name == "cuda":
            torch.cuda.current_stream().synchronize()

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        """Inside, a CUDA device works on a stream of this thread's own: what one thread sends runs
        beside what another computes. A result that is taken to the CPU waits for its stream."""
        if self.name != "cuda":
            yield
            return
        if not hasattr(_lanes, "stream"):
            _lanes.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(_lanes.stream):
            yield


def choose_device(wanted: str) -> Device:
    """`auto` takes a CUDA device if there is one.

    Raises:
        UsageError: the device asked for is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device here", hint="use --device auto")
    if wanted not in ("cpu", "cuda"):
        raise UsageError(f"--device {wanted}: no such device", hint="use --device auto")
    return Device(wanted, torch.float64)


@dataclass(frozen=True)
class Engine:
    """How the modules of a round are worked on.

    Attributes:
        workers: the threads, each of which works on one module, batch or file.
        tell: called as `tell(stage, done, total)`.
        lanes: those that only give a GPU its work; the same if None.
    """

    device: Device
    workers: Workers
    tell: Tell
    lanes: Workers | None = None

    def each(self, stage: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of items; what is done is told."""
        return self._each(self.workers, stage, function, items)

    def each_there(self, stage: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The same where all of the work is on the device, and what it works on."""
        return self._each(self.lanes or self.workers, stage, function, items)

    def _each(
        self, workers: Workers, stage: str, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[R]:
        every = list(items)
        results = workers.in_order(self._on_lane(function), every)
        return told(results, len(every), stage, self.tell)

    def _on_lane(self, function: Callable[[T], R]) -> Callable[[T], R]:
        def on_lane(item: T) -> R:
            with self.device.lane():
                result = function(item)
                self.device.wait()  # another lane may go on with it
                return result

        return on_lane

    def close(self) -> None:
        """Nothing more begins."""
        self.workers.close()
        if self.lanes is not None:
            self.lanes.close()


def make_engine(settings: Settings) -> Engine:
    """The device and threads asked for.

    Raises:
        UsageError: the device is not there.
    """
    device = choose_device(settings.device)
    threads = settings.threads or available_threads()
    warm_up(device)
    lanes = None if device.name == "cpu" else Workers(min(threads, _LANES))
    return Engine(device, Workers(threads), settings.tell, lanes)


def warm_up(device: Device) -> None:
    """Let a GPU load what computes there, once and on one thread: torch's libraries for it break
    when several threads ask for them first."""
    if device.name != "cuda" or device in _warm:
        return
    square = torch.eye(2, dtype=device.dtype, device=device.name)[None]
    for work in (torch.linalg.cholesky, torch.linalg.eigh, torch.linalg.qr, torch.linalg.svd):
        work(square @ square)
    torch.linalg.solve_triangular(square, square, upper=False)
    device.wait()
    _warm.add(device)


_warm: set[Device] = set()
