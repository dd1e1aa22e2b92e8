"""What a run computes with: the device, the threads, and who is told how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from clair_cli.errors import UsageError
from clair_cli.workflow.pool import Tell, Workers, available_threads, told
from clair_cli.workflow.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

_lanes = threading.local()


@dataclass(frozen=True)
class Device:
    """Where the products run, and how exactly."""

    name: str
    dtype: torch.dtype

    @property
    def pinned(self) -> bool:
        """Whether what is sent there should lie in page-locked memory."""
        return self.name == "cuda"

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
    """`auto` takes a CUDA device if there is one; float64 wherever the device has it.

    Raises:
        UsageError: the device asked for is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device here", hint="use --device auto")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: no MPS device here", hint="use --device auto")
    return Device(wanted, torch.float32 if wanted == "mps" else torch.float64)


@dataclass(frozen=True)
class Engine:
    """How the modules of a round are worked on.

    Attributes:
        workers: the threads, each of which works on one module or batch.
        tell: called as `tell(stage, done, total)`.
    """

    device: Device
    workers: Workers
    tell: Tell

    def each(self, stage: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of items; what is done is told."""

        def on_lane(item: T) -> R:
            with self.device.lane():
                return function(item)

        every = list(items)
        return told(self.workers.in_order(on_lane, every), len(every), stage, self.tell)


def make_engine(settings: Settings) -> Engine:
    """The device and threads asked for.

    Raises:
        UsageError: the device is not there.
    """
    device = choose_device(settings.device)
    workers = Workers(settings.threads or available_threads())
    return Engine(device, workers, settings.tell)
