"""Clients in S3: the same result as on this machine, in few requests, each client for itself."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from clair_cli.store import connect, objects, windows
from clair_cli.workflow import read
from tests import cohorts
from tests.store.s3 import Answer, Endpoint, Request, s3, slow
from tests.store.same import merged, placeless

__all__ = ["s3"]
pytestmark = pytest.mark.remote

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """Six honest clients in three layouts, and one whose update is turned round."""
    honest = cohorts.honest(6)
    opposed = cohorts.scaled(honest["c0"], -1.0)
    return cohorts.save(tmp_path / "clients", {**honest, "mallory": opposed}, layout="mixed")


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later look at a tensor reads it again."""
    monkeypatch.setattr(read, "KEPT_BYTES", 0)


def reasons(result: Any) -> dict[str, str]:
    return {c.name: " ".join(r.text for r in c.reasons) for c in result.report.clients}


def verdicts(result: Any) -> dict[str, str]:
    return {client.name: client.verdict for client in result.report.clients}


# The same result


@pytest.mark.parametrize("kept", [True, False])
def test_an_adapter_is_the_same_byte_for_byte(
    s3: Endpoint, clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(read, "KEPT_BYTES", 0)
    files, report = merged(clients, tmp_path / "local")
    remote_files, remote_report = merged(s3.upload(clients), tmp_path / "remote")
    assert WEIGHTS in files
    assert remote_files == files
    assert remote_report == report
    assert {c["name"]: c["verdict"] for c in report["clients"]}["mallory"] == "contaminated"


def test_in_memory_locally_and_in_s3_one_adapter_comes_out(
    s3: Endpoint, clients: Path, tmp_path: Path
) -> None:
    given = {name: in_memory(client) for name, client in cohorts.honest(6).items()}
    given["mallory"] = in_memory(cohorts.scaled(cohorts.honest(6)["c0"], -1.0))
    places: dict[str, Any] = {"memory": given, "local": clients, "s3": s3.upload(clients)}
    outputs: dict[str, Any] = {name: tmp_path / name for name in places}
    outputs["s3"] = s3.at("merged")
    files, reports = {}, {}
    for name, place in places.items():
        clair_cli.merge(place, outputs[name])
        if name == "s3":
            files[name] = {n: s3.get(f"merged/{n}") for n in (WEIGHTS, "adapter_config.json")}
            text = s3.get("merged/report.json").decode()
        else:
            folder = outputs[name]
            files[name] = {n: (folder / n).read_bytes() for n in (WEIGHTS, "adapter_config.json")}
            text = (folder / "report.json").read_text()
        reports[name] = without_paths(placeless(text, str(place), str(outputs[name])))
    assert files["s3"] == files["local"] == files["memory"]
    assert reports["s3"] == reports["local"]
    assert without_files(reports["memory"]) == without_files(reports["local"])


def in_memory(client: cohorts.Client) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {cohorts.peft_names("A", m): a.astype(np.float32) for m, a in client.A.items()}
    tensors |= {cohorts.peft_names("B", m): b.astype(np.float32) for m, b in client.B.items()}
    return tensors, client.fields


def without_paths(report: Any) -> Any:
    for client in report["clients"]:
        client.pop("path")
    return {**report, "options": {**report["options"], "clients": "", "output": ""}}


def without_files(report: Any) -> Any:
    """Without the hashes of files: that of a client in memory is of its tensors and its config."""
    for client in report["clients"]:
        client.pop("sha256")
    return report


@pytest.mark.parametrize(
    "folders", [["run/adapter"], ["checkpoint-5", "checkpoint-10"], ["."], ["a/b/c"]]
)
def test_layouts_are_found_as_on_a_disk(s3: Endpoint, tmp_path: Path, folders: list[str]) -> None:
    clients = tmp_path / "clients"
    for name, client in cohorts.honest(4).items():
        for folder in folders:
            cohorts.save_peft(clients / name / folder, client)
    (clients / "notes.txt").write_text("no client")
    options = ["--checkpoint", "last"] if len(folders) > 1 else []
    local = merged(clients, tmp_path / "local", *options)
    assert merged(s3.upload(clients), tmp_path / "remote", *options) == local


def test_names_are_those_of_a_disk(s3: Endpoint, tmp_path: Path) -> None:
    names = ("café ü", "a%20b", "x+y&z=1", "q?#[]", "\N{SNOWMAN}'\"\\", "~tilde*:|", "-x")
    honest = cohorts.honest(len(names)).values()
    clients = cohorts.save(tmp_path / "clients", dict(zip(names, honest, strict=True)))
    local = merged(clients, tmp_path / "local")
    assert {c["name"] for c in local[1]["clients"]} == set(names)
    assert merged(s3.upload(clients), tmp_path / "remote") == local


def test_markers_of_empty_folders_are_no_clients(
    s3: Endpoint, clients: Path, tmp_path: Path
) -> None:
    local = merged(clients, tmp_path / "local")
    address = s3.upload(clients)
    for key in ("clients/", "clients/c0/", "clients/c0/empty/"):
        s3.put(key, b"")
    assert merged(address, tmp_path / "remote") == local


def test_what_is_given_beside_the_clients_may_be_objects(s3: Endpoint, tmp_path: Path) -> None:
    first = cohorts.honest(1, seed=9)["c0"]
    clients = cohorts.save(tmp_path / "second", cohorts.on_top(cohorts.honest(4), first.deltas()))
    weights = {f"c{k}": k + 1 for k in range(4)}
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    before = cohorts.save_peft(tmp_path / "before", first)
    s3.put("weights.json", (tmp_path / "weights.json").read_bytes())
    here = ("--weights", tmp_path / "weights.json", "--previous", before)
    there = ("--weights", s3.at("weights.json"), "--previous", s3.upload(before))
    local, report = merged(clients, tmp_path / "local", *here)
    remote, remote_report = merged(clients, tmp_path / "remote", *there)
    assert remote == local != {}
    assert remote_report["inputs"] == report["inputs"] != {}
    one = ("--weights", s3.at("weights.json"), "--previous", s3.at("before", WEIGHTS))
    assert merged(clients, tmp_path / "again", *one)[0] == local


# Few requests


def small_clients(folder: Path, count: int = 20) -> Path:
    return cohorts.save(folder / "many", cohorts.honest(count))


def test_a_small_client_is_two_requests(s3: Endpoint, tmp_path: Path) -> None:
    address = s3.upload(small_clients(tmp_path))
    clair_cli.merge(address, None)
    print(f"{len(s3.requests)} requests for 20 clients of {2 * len(cohorts.MODULES)} tensors")
    assert len(s3.requests) == 1 + 20 + 20  # one listing; weights and config of each


def test_windows_make_tens_of_requests_of_thousands(
    s3: Endpoint, tmp_path: Path, nothing_kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = s3.upload(small_clients(tmp_path))
    clair_cli.merge(address, None)
    grouped = len(s3.requests)
    s3.requests.clear()
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1)
    monkeypatch.setattr(windows, "LEAST_WINDOW_BYTES", 1)
    monkeypatch.setattr(
        windows.Windows, "fill",
        lambda self, parts, entry, begin, memory: memory.__setitem__(
            slice(None), self._read(parts, entry, begin, begin + len(memory))
        ),
    )  # fmt: skip
    clair_cli.merge(address, None)
    print(f"{grouped} requests in windows, {len(s3.requests)} one by one")
    assert grouped == 1 + 20 + 20 + 20  # a window of each
    assert len(s3.requests) > 480


def test_a_large_client_is_read_once_in_chunks(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "CHUNK_BYTES", 2048)
    clients = small_clients(tmp_path, 3)
    address = s3.upload(clients)
    local = clair_cli.inspect(clients)
    assert verdicts(clair_cli.inspect(address)) == verdicts(local)
    size = (clients / "c0" / WEIGHTS).stat().st_size
    ranges = [r.range for r in s3.read(f"many/c0/{WEIGHTS}")]
    wanted = [f"bytes={a}-{min(size, a + 2048) - 1}" for a in range(0, size, 2048)]
    assert sorted(ranges) == sorted(wanted)
    assert len(wanted) > 3


def test_requests_at_one_time_are_few(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_kept: None
) -> None:
    monkeypatch.setattr(objects, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(windows, "WINDOW_BYTES", 1024)
    monkeypatch.setattr(windows, "LEAST_WINDOW_BYTES", 1024)
    address = s3.upload(small_clients(tmp_path, 30))
    s3.before = lambda r: time.sleep(0.005)
    clair_cli.inspect(address, threads=2)
    print(f"{len(s3.requests)} requests, at most {s3.most_at_once} at one time")
    assert len(s3.requests) > 300
    assert 2 < s3.most_at_once <= read.REMOTE_READERS + objects.REQUESTS


def test_every_read_is_pinned(s3: Endpoint, clients: Path, nothing_kept: None) -> None:
    address = s3.upload(clients)
    clair_cli.merge(address, None)
    reads = [r for r in s3.requests if r.method == "GET" and not r.query]
    assert reads
    assert all(r.condition.startswith('"') and r.range for r in reads)


# Each client for itself


def replaced_when(s3: Endpoint, key: str, number: int, data: bytes) -> None:
    """Replace an object as its `number`th read arrives."""
    count = 0

    def before(request: Request) -> None:
        nonlocal count
        if request.method == "GET" and request.key == key:
            count += 1
            if count == number:
                s3.put(key, data)

    s3.before = before


@pytest.mark.parametrize("number", [1, 2])
def test_a_client_replaced_midway_is_rejected(
    s3: Endpoint, tmp_path: Path, nothing_kept: None, number: int
) -> None:
    address = s3.upload(small_clients(tmp_path, 5))
    other = cohorts.client_bytes(cohorts.unrelated())
    replaced_when(s3, f"many/c2/{WEIGHTS}", number, other)
    result = clair_cli.merge(address, None)
    assert verdicts(result) == {f"c{k}": "rejected" if k == 2 else "benign" for k in range(5)}
    assert "changed while reading" in reasons(result)["c2"]
    assert result.tensors is not None
    others = [len(s3.read(f"many/c{k}/{WEIGHTS}")) for k in (0, 1, 3, 4)]
    assert others == [2] * 4  # the check and one window each: the loss of one costs no other a read


def test_one_that_vanishes_is_rejected(s3: Endpoint, tmp_path: Path) -> None:
    address = s3.upload(small_clients(tmp_path, 5))
    key = f"many/c2/{WEIGHTS}"

    def before(request: Request) -> None:
        if request.method == "GET" and request.key == key:
            s3.delete(key)

    s3.before = before
    result = clair_cli.merge(address, None)
    assert verdicts(result)["c2"] == "rejected"
    assert "changed while reading" in reasons(result)["c2"]


SECRETS = (
    b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIA-leaked</AWSAccessKeyId></Error>"
)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("503 Slow Down", "the store answers with status 503"),
        ("403 Forbidden", "Permission denied"),
        ("301 Moved", "the store"),
        ("400 Bad Request", "the store answers with status 400"),
    ],
)
def test_a_failing_client_costs_itself_only(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, said: str
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 2)
    address = s3.upload(small_clients(tmp_path, 5))
    key = f"many/c2/{WEIGHTS}"

    def before(request: Request) -> Answer | None:
        return (status, SECRETS) if request.key == key else None

    s3.before = before
    result = clair_cli.merge(address, None)
    assert verdicts(result) == {f"c{k}": "rejected" if k == 2 else "benign" for k in range(5)}
    assert said in reasons(result)["c2"]
    assert "leaked" not in str(result.report)
    assert len(s3.read(key)) == (3 if status.startswith("5") else 1)


def test_a_client_that_does_not_answer_costs_itself_only(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 1)
    monkeypatch.setattr(connect, "REQUEST_SECONDS", 1)
    address = s3.upload(small_clients(tmp_path, 5))
    key = f"many/c2/{WEIGHTS}"
    s3.before = lambda r: slow(2.5, ("200 OK", b"")) if r.key == key else None
    result = clair_cli.merge(address, None)
    assert verdicts(result) == {f"c{k}": "rejected" if k == 2 else "benign" for k in range(5)}
    assert "in time" in reasons(result)["c2"]
    assert len(s3.read(key)) == 2


def test_a_failure_that_passes_is_tried_again(s3: Endpoint, clients: Path, tmp_path: Path) -> None:
    local = merged(clients, tmp_path / "local")
    address, failed = s3.upload(clients), set[Request]()

    def before(request: Request) -> Answer | None:
        if request in failed:
            return None
        failed.add(request)
        return "500 Internal Error", b""

    s3.before = before
    assert merged(address, tmp_path / "remote") == local
    assert len(failed) > 10


def test_a_listing_that_fails_ends_the_run(s3: Endpoint) -> None:
    s3.before = lambda _: ("403 Forbidden", SECRETS)
    ran = cohorts.clair("inspect", s3.at("clients"))
    assert ran.exit_code == 2
    assert ran.stderr == f"clair: '{s3.at('clients')}' can't be read: Permission denied\n"


def test_a_folder_that_is_not_there(s3: Endpoint) -> None:
    ran = cohorts.clair("inspect", s3.at("clients"))
    assert ran.exit_code == 2
    assert "does not exist" in ran.stderr
    ran = cohorts.clair("inspect", "s3://no-such-bucket/clients")
    assert ran.exit_code == 2
    assert "there is no such bucket" in ran.stderr
    s3.put("file.json", b"{}")
    assert "is not a folder" in cohorts.clair("inspect", s3.at("file.json")).stderr


# The same limits


def test_a_file_above_the_limit_is_not_read(s3: Endpoint, tmp_path: Path) -> None:
    clients = small_clients(tmp_path, 4)
    size = (clients / "c0" / WEIGHTS).stat().st_size
    address = s3.upload(clients)
    s3.put(f"many/c2/{WEIGHTS}", bytes(size + 1))
    result = clair_cli.inspect(address, limit={"file": size})
    assert "above the limit" in reasons(result)["c2"]
    assert not s3.read(f"many/c2/{WEIGHTS}")
    assert verdicts(clair_cli.inspect(address, limit={"file": size + 1}))["c2"] == "rejected"
    assert s3.read(f"many/c2/{WEIGHTS}")


def test_of_a_bad_header_one_chunk_is_read(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce:
        def submit(self, function: Any, *args: Any, **options: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(function(*args, **options))
            return future

    monkeypatch.setattr(objects, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(objects, "_pool", AtOnce)
    address = s3.upload(small_clients(tmp_path, 4))
    s3.put(f"many/c2/{WEIGHTS}", (2**40).to_bytes(8, "little") + b"{" + bytes(10_000))
    result = clair_cli.inspect(address)
    assert "above the limit of 8,388,608" in reasons(result)["c2"]
    assert len(s3.read(f"many/c2/{WEIGHTS}")) == 1
