"""Google's and Azure's stores: the same result as on this machine, pinned reads, whole objects.

Google's is a stand-in: its own protocol of conditions in front of moto, whose others are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.store import upload
from clair_cli.workflow import read
from tests import cohorts
from tests.store import azure
from tests.store.s3 import Endpoint, Request, s3
from tests.store.same import merged

__all__ = ["s3"]
pytestmark = pytest.mark.remote

WEIGHTS = "adapter_model.safetensors"
STORES = ["gs", "az", *(["azurite"] if azure.EMULATOR else [])]
Cloud = Endpoint | azure.Container


@pytest.fixture(params=STORES)
def cloud(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cloud]:
    """An empty bucket or container, and an environment in which it is found."""
    if request.param != "gs":
        with azure.container_of(monkeypatch, emulator=request.param == "azurite") as container:
            yield container
        return
    endpoint: Endpoint = request.getfixturevalue("s3")
    endpoint.scheme = "gs"
    account = tmp_path / "account.json"
    fields = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    account.write_text(json.dumps(fields))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("GOOGLE_BASE_URL", endpoint.url)
    yield endpoint


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """Six honest clients in three layouts, and one whose update is turned round."""
    honest = cohorts.honest(6)
    opposed = cohorts.scaled(honest["c0"], -1.0)
    return cohorts.save(tmp_path / "clients", {**honest, "mallory": opposed}, layout="mixed")


def small_clients(folder: Path, count: int) -> Path:
    return cohorts.save(folder / "many", cohorts.honest(count))


def test_a_round_from_the_store_and_back(cloud: Cloud, clients: Path, tmp_path: Path) -> None:
    files, report = merged(clients, tmp_path / "local")
    address = cloud.upload(clients)
    assert merged(address, tmp_path / "remote") == (files, report)
    out = cloud.at("merged")
    assert cohorts.clair("merge", address, "-o", out, "-q").exit_code == 0
    assert cloud.get(f"merged/{WEIGHTS}") == (tmp_path / "local" / WEIGHTS).read_bytes()
    assert sorted(cloud.keys("merged/")) == sorted(
        f"merged/{name}" for name in (*files, "report.json")
    )
    ran = cohorts.clair("verify", out, address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    cloud.put(f"merged/{WEIGHTS}", b"others")
    assert cohorts.clair("verify", out).exit_code == 3


def test_requests(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One listing; of each client the config and the weights; and a window where nothing is
    kept. All reads are ranges, pinned to the ETag of the listing."""
    address = cloud.upload(small_clients(tmp_path, 12))
    cloud.requests.clear()
    clair_cli.merge(address, None)
    assert len(cloud.requests) == 1 + 12 + 12
    cloud.requests.clear()
    monkeypatch.setattr(read, "KEPT_BYTES", 0)
    clair_cli.merge(address, None)
    assert len(cloud.requests) == 1 + 12 + 12 + 12
    reads = [r for r in cloud.requests if r.key and r.method == "GET"]
    assert len(reads) == 36
    assert all(r.condition.startswith('"') and r.range for r in reads)


@pytest.mark.parametrize("number", [1, 2])
def test_a_client_replaced_midway_is_rejected(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(read, "KEPT_BYTES", 0)
    address, key, count = cloud.upload(small_clients(tmp_path, 5)), f"many/c2/{WEIGHTS}", 0

    def before(request: Request) -> None:
        nonlocal count
        if request.method == "GET" and request.key == key:
            count += 1
            if count == number:
                cloud.put(key, cohorts.client_bytes(cohorts.unrelated()))

    cloud.before = before
    result = clair_cli.merge(address, None)
    found = {client.name: client.verdict for client in result.report.clients}
    assert found == {f"c{k}": "rejected" if k == 2 else "benign" for k in range(5)}
    (rejected,) = result.report.with_verdict("rejected")
    assert "changed while reading" in rejected.reasons[0].text


@pytest.mark.parametrize("large", [False, True])
def test_nothing_is_replaced_without_force(
    cloud: Cloud, clients: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """An object is there before the run, or appears as it is written: the store refuses. A large
    one is made of parts, under another name."""
    if large:
        monkeypatch.setattr(upload, "SINGLE_BYTES", 4096)
    args: tuple[Any, ...] = ("merge", clients, "-o", cloud.at("out.safetensors"), "-q")

    def late(request: Request) -> None:
        if request.method == "PUT" and request.key == "out.safetensors":
            cloud.put(request.key, b"somebody else's")

    cloud.before = late
    ran = cohorts.clair(*args)
    assert ran.exit_code == 6, ran.stderr
    assert cloud.get("out.safetensors") == b"somebody else's"
    assert cloud.keys() == ["out.safetensors"], "nothing is left over"
    cloud.before = None
    ran = cohorts.clair(*args)
    assert ran.exit_code == 6 and "exists" in ran.stderr
    assert cohorts.clair(*args, "--force").exit_code == 0
    assert len(cloud.get("out.safetensors")) > 4096
    assert cloud.keys() == ["out.report.json", "out.safetensors"]
    assert cohorts.clair("verify", cloud.at("out.safetensors")).exit_code == 0
    made_of_parts = any("block" in r.query or "uploadId" in r.query for r in cloud.requests)
    assert made_of_parts == large


def test_a_write_that_fails_leaves_nothing(cloud: Cloud, clients: Path) -> None:
    cloud.before = lambda r: (
        ("403 Forbidden", b"a secret") if r.method == "PUT" and r.key.endswith(WEIGHTS) else None
    )
    ran = cohorts.clair("merge", clients, "-o", cloud.at("merged"), "-q")
    assert ran.exit_code == 6
    assert "Permission denied" in ran.stderr and "secret" not in ran.stderr
    assert cloud.keys() == []


def test_what_is_not_there(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = cohorts.clair("inspect", cloud.at("clients"))
    assert ran.exit_code == 2 and "does not exist" in ran.stderr
    ran = cohorts.clair("inspect", f"{cloud.scheme}://no-such-bucket/clients")
    assert ran.exit_code == 2 and "there is no such bucket" in ran.stderr
    cloud.before = lambda _: ("403 Forbidden", json.dumps({"secret": 1}).encode())
    ran = cohorts.clair("inspect", cloud.at("clients"))
    assert ran.exit_code == 2
    assert ran.stderr == f"clair: '{cloud.at('clients')}' can't be read: Permission denied\n"
