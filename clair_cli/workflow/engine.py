"""What a run computes with: the device, the threads, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from clair_cli.errors import UsageError
from clair_cli.workflow.pool import Tell, available_threads, in_order, told
from clair_cli.workflow.settings import Settings

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Device:
    """Where the products run, and how exactly."""

    name: str
    dtype: torch.dtype


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
        threads: modules worked on at once, each on one thread.
        tell: called as `tell(stage, done, total)`.
    """

    device: Device
    threads: int
    tell: Tell

    def each(self, stage: str, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in the order of items; what is done is told."""
        every = list(items)
        return told(in_order(function, every, self.threads), len(every), stage, self.tell)


def make_engine(settings: Settings) -> Engine:
    """The device and threads asked for.

    Raises:
        UsageError: the device is not there.
    """
    device = choose_device(settings.device)
    return Engine(device, settings.threads or available_threads(), settings.tell)
