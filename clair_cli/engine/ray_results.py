"""Results of tasks of a Ray cluster, errors that travelled as values; and clients read by tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.shared_tables import SharedTables
from clair_cli.engine.ray_tasks import Raised, read_item

T = TypeVar("T")

# How often Ray does a task again whose machine or process is gone.
MAX_RETRIES = 5


class RemoteTraceError(Exception):
    """Where an error arose on another machine."""


def result_of(reference: Any) -> Any:
    """The result of a task.

    Raises:
        Exception: as the task raised it.
        RayError: the machines that had the task are gone, or it can't be run.
    """
    result = ray.get(reference)
    if isinstance(result, Raised):
        raise result.error from RemoteTraceError(f"on a machine of the cluster:\n{result.trace}")
    return result


@dataclass(frozen=True)
class _Begun:
    """A client that is being read; as a future."""

    reference: Any
    tables: SharedTables

    def result(self) -> Any:
        found = result_of(self.reference)
        return self.tables.shared(found) if isinstance(found, Adapter) else found


class RayReaders:
    """Reads and checks clients on the machines of the cluster; as `Workers`."""

    def __init__(self) -> None:
        self._task = ray.remote(read_item).options(
            num_cpus=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD"
        )

    def start(self, function: Callable[[T], Any], items: Iterable[T]) -> list[_Begun]:
        """Begin to read all clients: returns what gives each one's adapter or rejection."""
        tables, load, folder = SharedTables(), ray.put(function), os.getcwd()
        return [_Begun(self._task.remote(load, folder, item), tables) for item in items]

    def close(self) -> None:
        """Nothing: tasks end with the connection."""
