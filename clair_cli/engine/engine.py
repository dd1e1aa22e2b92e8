"""The interface through which work on a round's modules runs, and its implementations: threads, a
GPU, and several machines (ray_engine.py).

A piece of work is a top-level function whose settings are bound by `functools.partial`: small
values that can be pickled. It is called with the round's factors on the machine that runs it and
with one item, such as a batch of modules, and returns tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch

from clair_cli.cohort.round import Round
from clair_cli.engine.cluster import on_ray
from clair_cli.engine.device import Device, choose_device, warm_up
from clair_cli.engine.device_cache import cache_on_device
from clair_cli.engine.factors import RoundFactors
from clair_cli.engine.threads import Workers, available_threads, reported
from clair_cli.settings import Progress, Settings

T = TypeVar("T")
R = TypeVar("R")

# Threads that launch work on a GPU, each with a stream: more would only wait for the interpreter.
_STREAMS = 4


class Engine(Protocol):
    """Runs work on batches of modules.

    Attributes:
        device: where products are computed.
        threads: how many items are worked on at once on the CPU.
        progress: called as `progress(stage, done, total)`.
        stores: bytes that results which are kept from pass to pass may take in the memory of other
            machines.
    """

    device: Device
    threads: int
    progress: Progress
    stores: int

    def load(self, round_: Round) -> RoundFactors:
        """The factors of a round, for `map`.

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
        keeping: bool = False,
    ) -> Iterator[R]:
        """`work(factors, item)` for every item, in order; the bytes do not depend on `threads`.

        Args:
            stage: name of the stage, for `progress`.
            work: called with `factors` and one item, on any thread.
            on_device: whether the work runs on the device alone if the factors are in its memory.
            keeping: whether the work takes from or puts into what `factors` keeps (`.grams`,
                `.cores`, `.cuts`, `.read`), of the item's modules only.
        """

    def close(self) -> None:
        """Start no more work, and do not wait for work in progress."""


class CpuEngine:
    """CPU threads, each of which works on one item at a time."""

    stores = 0

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
        keeping: bool = False,
    ) -> Iterator[R]:
        every = list(items)
        results = self._workers.in_order(partial(work, factors), every)
        return reported(results, len(every), stage, self.progress)

    def close(self) -> None:
        self._workers.close()


class GpuEngine:
    """A GPU. A few threads with a stream each launch the work; all threads do where factors have to
    be read and copied to the GPU first."""

    stores = 0

    def __init__(self, device: Device, threads: int, progress: Progress) -> None:
        self.device, self.threads, self.progress = device, threads, progress
        self._workers, self._streams = Workers(threads), Workers(min(threads, _STREAMS))
        warm_up(device)

    def load(self, round_: Round) -> RoundFactors:
        cache = cache_on_device(
            round_.compared, self.device, partial(self._map, self._workers, "loading")
        )
        return RoundFactors(round_, self.device, cache)

    def map(
        self,
        stage: str,
        work: Callable[[RoundFactors, T], R],
        items: Iterable[T],
        factors: RoundFactors,
        *,
        on_device: bool = True,
        keeping: bool = False,
    ) -> Iterator[R]:
        cached = on_device and factors.cache is not None
        workers = self._streams if cached else self._workers
        return self._map(workers, stage, partial(work, factors), items)

    def _map(
        self, workers: Workers, stage: str, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[R]:
        def on_stream(item: T) -> R:
            with self.device.stream():
                result = function(item)
                self.device.wait()  # another stream may use the result
                return result

        every = list(items)
        return reported(workers.in_order(on_stream, every), len(every), stage, self.progress)

    def close(self) -> None:
        self._workers.close()
        self._streams.close()


def make_engine(settings: Settings) -> Engine:
    """The engine, with the device and the number of threads that the settings ask for; that of a
    Ray cluster needs the context of `cluster_for`.

    Raises:
        UsageError: the machine, or the cluster, has no such device.
    """
    if on_ray(settings):
        from clair_cli.engine.ray_engine import RayEngine  # it imports ray

        return RayEngine(settings)
    device = choose_device(settings.device)
    threads = settings.threads or available_threads()
    if device.name == "cpu":
        return CpuEngine(threads, settings.progress)
    return GpuEngine(device, threads, settings.progress)
