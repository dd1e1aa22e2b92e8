"""Work on a Ray cluster of two nodes on this machine: the bytes of a local run, whatever happens to
a node on the way."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import clair_cli
from clair_cli.cohort.round import load_round
from clair_cli.engine.cluster import cluster_for
from clair_cli.engine.engine import make_engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.settings import make_settings
from clair_cli.workflow.read import read_cohort
from tests.cohorts import factored, honest_deltas, save
from tests.engine.cluster.nodes import add_second, engine_of, made

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray


def test_the_files_are_those_of_a_local_run(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """And nothing is connected afterwards. More in test_same_bytes.py."""
    local = made(clair_cli.merge, folder, tmp_path / "local")
    found = made(clair_cli.merge, folder, tmp_path / "ray", engine=engine_of(cluster))
    assert found == local
    import ray

    assert not ray.is_initialized()


def test_a_machine_that_is_gone_changes_no_byte(
    cluster: Cluster, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local = made(clair_cli.merge, folder, tmp_path / "local")
    node, gone = cluster.worker_nodes.copy().pop(), list[str]()

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("comparing", 1):
            cluster.remove_node(node, allow_graceful=False)
            gone.append(stage)

    try:
        found = made(
            clair_cli.merge, folder, tmp_path / "ray", engine=engine_of(cluster), progress=progress
        )
    finally:
        add_second(cluster)
    assert gone and found == local
    assert capfd.readouterr().out == ""


PATIENCE = 60.0  # seconds


def waiting(folder: str, factors: RoundFactors, item: str) -> tuple[str, int]:
    """Leave word of who begins an item; all but the first go on when there is a file "go"."""
    import ray

    name = f"{item}-{ray.get_runtime_context().get_node_id()}-{time.monotonic_ns()}"
    Path(folder, name).touch()
    until = time.monotonic() + PATIENCE
    while item != "a" and not Path(folder, "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return item, len(factors.round.adapters)


def begun(folder: Path) -> list[tuple[str, str]]:
    """Item and node of everything that was begun."""
    words = [path.name.split("-") for path in folder.iterdir() if "-" in path.name]
    return [(item, node) for item, node, _ in words]


def test_the_work_of_a_machine_that_is_gone_is_done_again(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    """In the order of the items."""
    node = cluster.worker_nodes.copy().pop()
    settings = make_settings("inspect", folder, None, {"engine": engine_of(cluster)})
    with cluster_for(settings):
        engine = make_engine(settings)
        factors = engine.load(load_round(settings, read_cohort(settings)))
        found = []
        for n, result in enumerate(
            engine.map("working", partial(waiting, str(tmp_path)), list("abcdef"), factors)
        ):
            found.append(result)
            if n == 0:
                until = time.monotonic() + PATIENCE
                while not any(i != "a" and on == node.node_id for i, on in begun(tmp_path)):
                    assert time.monotonic() < until, "the second node begins nothing"
                    time.sleep(0.05)
                cluster.remove_node(node, allow_graceful=False)
                (tmp_path / "go").touch()
    add_second(cluster)
    assert found == [(item, 8) for item in "abcdef"]
    assert len(begun(tmp_path)) > 6, "an item was begun twice"


@pytest.mark.parametrize("stage", ["connecting", "comparing"])
def test_a_file_that_one_machine_cannot_read_rejects_its_client(
    cluster: Cluster, tmp_path: Path, unreadable: Path, stage: str
) -> None:
    """While clients are checked there, or later."""
    clients = {f"c{k}": factored(d, 6, seed=k) for k, d in enumerate(honest_deltas(7))}
    folder = save(tmp_path / "clients", clients, "header")
    others = tmp_path / "others"
    save(others, {name: c for name, c in clients.items() if name != "c3"}, "header")

    def progress(now: str, done: int, total: int) -> None:
        if now == stage and not unreadable.exists():
            unreadable.write_text("c3.safetensors")

    found = clair_cli.merge(
        folder, tmp_path / "found", engine=engine_of(cluster), progress=progress
    )
    clair_cli.merge(others, tmp_path / "expected")
    (rejected,) = [c for c in found.report.clients if c.verdict == "rejected"]
    assert rejected.name == "c3"
    (reason,) = rejected.reasons
    assert "'c3.safetensors' is unreadable: Input/output error" in reason.text
    if stage == "comparing":  # before, it may be checked on the machine that can read it
        assert "changed while reading" in reason.text
    name = "adapter_model.safetensors"
    expected = (tmp_path / "expected" / name).read_bytes()
    assert (tmp_path / "found" / name).read_bytes() == expected
