"""Nodes of a Ray cluster on this machine, and what runs on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[3]
# First on the path of the second node's processes.
SECOND = Path(__file__).parent / "second_node"
HERE = "127.0.0.1"
_ARGUMENTS = {
    "num_cpus": 1, "node_ip_address": HERE, "include_dashboard": False,
    "object_store_memory": 80 * 2**20,
}  # fmt: skip


def head() -> Cluster:
    """A cluster of one node."""
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, connect=False, head_node_args=_ARGUMENTS)


def add_second(cluster: Cluster) -> Any:
    """One more node, on which files can be made unreadable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SECOND), str(ROOT)]))
        return cluster.add_node(**_ARGUMENTS)


def engine_of(cluster: Cluster) -> str:
    """The value of the option."""
    return f"ray={cluster.address}"


def made(
    function: Callable[..., Any], folder: Path, place: Path, **options: Any
) -> dict[str, bytes]:
    """The files that a function writes to "out" in a new folder."""
    before = Path.cwd()
    place.mkdir()
    os.chdir(place)
    try:
        function(folder, "out", **options)
    finally:
        os.chdir(before)
    files = (path for path in sorted(place.rglob("*")) if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}
