"""Where a round's modules are worked on: one interface, an implementation per kind of machine.

A piece of work is a function of a module's top level, with its settings bound by
`functools.partial`: small values that can be pickled. It is called with the round's factors where
it runs and with one item, such as a batch of modules, and returns tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch

from clair_cli.cohort.round import Round
from clair_cli.engine.device import Device, choose_device, warm_up
from clair_cli.engine.device_cache import cache_on_device
from clair_cli.engine.factors import RoundFactors
from clair_cli.engine.threads import Workers, available_threads, reported
from clair_cli.settings import Progress, Settings

T = TypeVar("T")
R = TypeVar("R")

# Threads that give a GPU its work, each with a stream: more would only wait for the interpreter.
_STREAMS = 4


class Engine(Protocol):
    """Runs work on batches of modules.

    Attributes:
        device: where products are computed.
        threads: how many items are worked on at once on the CPU.
        progress: called as `progress(stage, done, total)`.
    """

    device: Device
    threads: int
    progress: Progress

    def load(self, round_: Round) -> RoundFactors:
        """Make a round's factors available to the work.

        Raises:
            ClientLost: a file changed since it was checked.
        """

    def map(
        self,
        stage: str,
        work: Callable[[RoundFactors, T], R],
        items: Iterable[T],
        factors: RoundFactors,
        *,
        on_device: bool = True,
    ) -> Iterator[R]:
        """`work(factors, item)` for every item, in order; the bytes do not depend on `threads`.

        Args:
            stage: what `progress` is called with.
            on_device: whether the work computes on the device alone, given the factors there.
        """

    def close(self) -> None:
        """Begin no more work, and wait for none."""


class CpuEngine:
    """Threads, each of which works on one item."""

    def __init__(self, threads: int, progress: Progress) -> None:
        self.device = Device("cpu", torch.float64)
        self.threads, self.progress = threads, progress
        self._workers = Workers(threads)

    def load(self, round_: Round) -> RoundFactors:
        return RoundFactors(round_, self.device)

    def map(
        self,
        stage: str,
        work: Callable[[RoundFactors, T], R],
        items: Iterable[T],
        factors: RoundFactors,
        *,
        on_device: bool = True,
    ) -> Iterator[R]:
        every = list(items)
        results = self._workers.in_order(partial(work, factors), every)
        return reported(results, len(every), stage, self.progress)

    def close(self) -> None:
        self._workers.close()


class GpuEngine:
    """A GPU, given work by a few threads with a stream each; more threads work where the factors
    are still on the CPU."""

    def __init__(self, device: Device, threads: int, progress: Progress) -> None:
        self.device, self.threads, self.progress = device, threads, progress
        self._workers, self._streams = Workers(threads), Workers(min(threads, _STREAMS))
        warm_up(device)

    def load(self, round_: Round) -> RoundFactors:
        cache = cache_on_device(round_, self.device, partial(self._map, self._workers, "loading"))
        return RoundFactors(round_, self.device, cache)

    def map(
        self,
        stage: str,
        work: Callable[[RoundFactors, T], R],
        items: Iterable[T],
        factors: RoundFactors,
        *,
        on_device: bool = True,
    ) -> Iterator[R]:
        there = on_device and factors.cache is not None
        workers = self._streams if there else self._workers
        return self._map(workers, stage, partial(work, factors), items)

    def _map(
        self, workers: Workers, stage: str, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[R]:
        def on_stream(item: T) -> R:
            with self.device.stream():
                result = function(item)
                self.device.wait()  # work on another stream may go on with it
                return result

        every = list(items)
        return reported(workers.in_order(on_stream, every), len(every), stage, self.progress)

    def close(self) -> None:
        self._workers.close()
        self._streams.close()


def make_engine(settings: Settings) -> Engine:
    """The device and threads asked for.

    Raises:
        UsageError: the device is not there.
    """
    device = choose_device(settings.device)
    threads = settings.threads or available_threads()
    if device.name == "cpu":
        return CpuEngine(threads, settings.progress)
    return GpuEngine(device, threads, settings.progress)
