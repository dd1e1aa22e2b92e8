"""A Ray cluster of two nodes on this machine, one CPU each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cohorts import factored, honest_deltas, save, scaled, with_nan
from tests.engine.cluster.nodes import HERE, ROOT, add_second, head
from tests.store.s3 import environment_of_s3

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="package")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where names of files stand that the second node can't open."""
    return tmp_path_factory.mktemp("second") / "unreadable"


@pytest.fixture(scope="package")
def environment(unreadable: Path) -> Iterator[pytest.MonkeyPatch]:
    """Variables of the nodes, and of who connects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", 4 * "a-token-")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a lost node is noticed in two seconds
        patch.setenv("RAY_health_check_failure_threshold", "3")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TESTS_UNREADABLE", str(unreadable))
        for name, value in environment_of_s3().items():
            patch.setenv(name, value)
        from ray._private import services

        # who connects would look for this machine's address on the network, and use that
        patch.setattr(services, "get_node_ip_address", lambda address=None: HERE)
        yield patch


@pytest.fixture(scope="package")
def cluster(environment: pytest.MonkeyPatch) -> Iterator[Cluster]:
    started = head()
    add_second(started)
    yield started
    started.shutdown()


@pytest.fixture(autouse=True)
def all_readable(unreadable: Path) -> Iterator[None]:
    yield
    unreadable.unlink(missing_ok=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven honest clients, one far too large, one that can't be read."""
    clients = {f"c{k}": factored(d, 6, seed=k) for k, d in enumerate(honest_deltas(7))}
    clients |= {"large": scaled(clients["c0"], 20.0), "nan": with_nan(clients["c1"])}
    return save(tmp_path / "clients", clients)
