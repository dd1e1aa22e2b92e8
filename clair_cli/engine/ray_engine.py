"""The engine of several machines: each item of work is a task of a Ray cluster, on one thread.

The round is sent once, as a description: paths, digests and the tables that clients share. Each
machine reads the clients' files itself, and compares digests as a local run does. Results are taken
in order, so they are those of a local run on the same kind of CPU, to the last byte. Ray does the
tasks of a machine that is gone on another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
import torch

from clair_cli.cohort.round import ClientLost, Round
from clair_cli.engine.cluster import STORES_SHARE
from clair_cli.engine.device import Device
from clair_cli.engine.factors import RoundFactors
from clair_cli.engine.ray_results import MAX_RETRIES, result_of
from clair_cli.engine.ray_tasks import Lost, described, gpu_memory, run_item, sources_of
from clair_cli.engine.threads import reported
from clair_cli.errors import UsageError
from clair_cli.settings import Progress, Settings

T = TypeVar("T")
R = TypeVar("R")

# Tasks per CPU of the cluster that are begun before the first result is taken.
_AHEAD = 2
# Share of a GPU that one task takes.
_GPU_SHARE = 0.25


@dataclass(frozen=True)
class RemoteDevice(Device):
    """A GPU of the cluster, with `bytes_` of memory; this machine may have none."""

    bytes_: int = 0

    @property
    def memory(self) -> int:
        return self.bytes_


class RemoteFactors(RoundFactors):
    """A round whose factors are read on the machines that work on them.

    Attributes:
        sent: a reference to the described round.
        kept: references to what a pass kept of a module for the next one, by module.
    """

    def __init__(self, round_: Round, device: Device) -> None:
        super().__init__(round_, device)
        self.sent = ray.put(described(round_))
        self.kept: dict[str, Any] = {}

    def of(self, round_: Round) -> RoundFactors:
        if round_ is self.round:
            return self
        found = RemoteFactors(round_, self.device)
        found.kept = self.kept
        return found

    def forget(self) -> None:
        self.kept.clear()


class RayEngine:
    """A connected Ray cluster, see `cluster_for`.

    Attributes:
        threads: tasks that run on this machine at once.
    """

    def __init__(self, settings: Settings) -> None:
        self.progress: Progress = settings.progress
        self.device = _device(settings.device)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = ray.get_runtime_context().get_node_id()
        cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes}
        self.threads = cpus.get(here, 0)
        self.stores = int(STORES_SHARE * ray.cluster_resources().get("object_store_memory", 0))
        self._ahead = _AHEAD * max(1, sum(cpus.values()))
        gpus = _GPU_SHARE if self.device.name == "cuda" else 0
        self._task = ray.remote(
            num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD"
        )(run_item)

    def load(self, round_: Round) -> RoundFactors:
        return RemoteFactors(round_, self.device)

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
        assert isinstance(factors, RemoteFactors)
        every = list(items)
        begin = partial(self._begin, ray.put(work), factors, keeping)
        return reported(self._in_order(begin, every, factors), len(every), stage, self.progress)

    def _begin(self, work: Any, factors: RemoteFactors, keeping: bool, item: Any) -> Any:
        """Begin one task; returns the reference to its result."""
        modules = modules_of(item) if keeping else []
        kept = [factors.kept.pop(module, None) for module in modules]
        task = self._task.options(num_returns=1 + len(modules))
        found = task.remote([factors.sent], self.device, work, item, modules, *kept)
        if not modules:
            return found
        factors.kept.update(zip(modules, found[1:], strict=True))
        return found[0]

    def _in_order(
        self, begin: Callable[[T], Any], items: Sequence[T], factors: RemoteFactors
    ) -> Iterator[Any]:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(begin(item))
                if len(waiting) >= self._ahead:
                    yield _taken(waiting.popleft(), factors)
            while waiting:
                yield _taken(waiting.popleft(), factors)
        finally:
            for reference in waiting:
                ray.cancel(reference)

    def close(self) -> None:
        """The cluster stays connected until the context of `cluster_for` ends."""


def modules_of(item: Any) -> list[str]:
    """The modules that an item is about: one, several, or something that has `modules`."""
    return [item] if isinstance(item, str) else list(getattr(item, "modules", item))


def _taken(reference: Any, factors: RemoteFactors) -> Any:
    """The result of a task, or its error raised here."""
    result = result_of(reference)
    if isinstance(result, Lost):
        raise ClientLost(sources_of(factors.round)[result.index], result.error)
    return result


def _device(wanted: str) -> Device:
    """The device of the tasks: the CPU unless "cuda" is wanted.

    Raises:
        UsageError: the cluster has no GPU.
    """
    if wanted != "cuda":
        return Device("cpu", torch.float64)
    if ray.cluster_resources().get("GPU", 0) < _GPU_SHARE:
        raise UsageError(
            "--device cuda: no machine of the Ray cluster has a GPU", hint="use --device cpu"
        )
    size = result_of(ray.remote(gpu_memory).options(num_cpus=1, num_gpus=_GPU_SHARE).remote())
    return RemoteDevice("cuda", torch.float64, size)
