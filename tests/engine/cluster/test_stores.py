"""A cluster whose machines read the clients from a store, each by itself: a local run's bytes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import clair_cli
from clair_cli.engine.ray_nodes import look_around
from clair_cli.store.address import RemotePath
from clair_cli.store.lookup import looked_up
from tests import cohorts
from tests.engine.cluster.nodes import engine_of
from tests.store.s3 import Endpoint, s3
from tests.store.same import merged

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

__all__ = ["s3"]
pytestmark = pytest.mark.ray
WEIGHTS = "adapter_model.safetensors"


def test_clients_and_results_in_a_store(
    cluster: Cluster, s3: Endpoint, folder: Path, tmp_path: Path
) -> None:
    """Every read is pinned to what the one listing saw, on whichever machine it is done."""
    files, report = merged(folder, tmp_path / "local")
    address = s3.upload(folder)
    s3.requests.clear()
    engine = ("--engine", engine_of(cluster))
    assert merged(address, tmp_path / "remote", *engine) == (files, report)
    reads = [r for r in s3.requests if r.method == "GET" and not r.query]
    assert len(reads) > 2 * len(report["clients"])
    assert all(r.condition.startswith('"') and r.range for r in reads)
    assert sum("list-type" in r.query for r in s3.requests) == 1
    assert cohorts.clair("merge", address, "-o", s3.at("out"), "-q", *engine).exit_code == 0
    assert s3.get(f"out/{WEIGHTS}") == (tmp_path / "local" / WEIGHTS).read_bytes()
    ran = cohorts.clair("verify", s3.at("out"), address, *engine)
    assert (ran.exit_code, ran.stderr) == (0, "")


def test_a_later_round(cluster: Cluster, s3: Endpoint, folder: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    clair_cli.merge(folder, before)
    options: dict[str, Any] = {"allow_undetermined": True, "modules": "union"}
    clair_cli.merge(folder, tmp_path / "local", previous=before, **options)
    clair_cli.merge(
        s3.upload(folder), tmp_path / "ray", previous=s3.upload(before),
        engine=engine_of(cluster), **options,
    )  # fmt: skip
    found = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("local", "ray")]
    assert found[0] == found[1]


def test_a_client_that_is_replaced_after_its_check_is_rejected(
    cluster: Cluster, s3: Endpoint, folder: Path
) -> None:
    address, key = s3.upload(folder), f"{folder.name}/c2/{WEIGHTS}"

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "memory":
            s3.put(key, cohorts.client_bytes(cohorts.unrelated()))

    result = clair_cli.merge(address, None, engine=engine_of(cluster), progress=progress)
    (lost,) = [c for c in result.report.with_verdict("rejected") if c.name == "c2"]
    assert "changed while reading" in lost.reasons[0].text
    assert result.tensors is not None


def test_a_machine_says_what_it_cannot_read(s3: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    place = RemotePath("s3", s3.bucket, ("clients",))
    assert look_around((), (place,)).refused == ()
    s3.before = lambda _: ("403 Forbidden", b"")
    assert look_around((), (place,)).refused == ((str(place), "Permission denied"),)
    monkeypatch.setattr("clair_cli.store.connect.find_spec", lambda name: None)
    ((_, why),) = look_around((), (place,)).refused
    assert "needs the library obstore" in why and "pip install" in why


def test_a_place_is_sent_with_what_is_known_of_itself(s3: Endpoint, folder: Path) -> None:
    """And not with the listing of all."""
    s3.upload(folder)
    listed, stores = looked_up(RemotePath("s3", s3.bucket, ("clients",))), set()
    for place in (listed, listed / "c1", listed / "c1" / WEIGHTS, listed / "c1" / "none"):
        data = pickle.dumps(place)
        assert len(data) < 900 and b"c3" not in data
        found = pickle.loads(data)
        assert (found, found.entry()) == (place, place.entry())
        assert (found.is_dir(), found.is_file()) == (place.is_dir(), place.is_file())
        stores.add(found.store)
    assert len(stores) == 1
