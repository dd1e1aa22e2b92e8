"""Keys of objects come from strangers too: one that no path may have costs its own client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clair_cli.store import connect, listing
from tests import cohorts
from tests.bad_input.running import run
from tests.bad_input.table import ROWS, covers
from tests.store.s3 import Endpoint, Request, s3

__all__ = ["s3"]
pytestmark = pytest.mark.remote

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def address(s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four good clients and one called bad, which nothing is wrong with yet."""
    monkeypatch.chdir(tmp_path)
    good = cohorts.honest(5)
    clients = {("bad" if name == "c4" else name): client for name, client in good.items()}
    return s3.upload(cohorts.save(tmp_path / "clients", clients))


def check(row: int, address: str, *says: str) -> None:
    """The bad client alone is rejected, and the round goes on, but for `--strict`."""
    ran = run("merge", address, "-o", "m.safetensors")
    assert ran.code == ROWS[row].code, ran.words
    assert ran.verdicts == {"bad": "rejected"} | {f"c{k}": "benign" for k in range(4)}
    for text in says:
        assert text in ran.reason("bad")
    strict = run("merge", address, "-o", "s.safetensors", "--strict", report="s.report.json")
    assert strict.code == ROWS[row].strict


@pytest.mark.parametrize(
    ("row", "key", "says"),
    [
        (101, "bad/../c0/adapter_model.safetensors", "a part '.' or '..'"),
        (101, "bad/./x", "a part '.' or '..'"),
        (101, "bad/sub/../../../c1/x.safetensors", "a part '.' or '..'"),
        (101, "bad//adapter_model.safetensors", "an empty part (//)"),
        (101, "bad/sub//x", "an empty part (//)"),
        (101, "bad/\x01x", "a control character"),
        (101, "bad/\x1b[31mx.json", "a control character"),
        (101, "bad/" + "a/" * 300 + "x\x7f", "a control character"),
    ],
    ids=[f"row-101-{n}" for n in range(8)],
)
def test_a_wrong_key(s3: Endpoint, address: str, row: int, key: str, says: str) -> None:
    s3.put(f"clients/{key}", b"x")
    check(row, address, says)


@covers(102)
def test_a_client_with_too_many_objects(
    s3: Endpoint, address: str, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    """One with just as many as are listed is read; of one with more no more are listed."""
    monkeypatch.setattr(listing, "MAX_KEYS_OF_ONE", 40)
    for number in range(38):
        s3.put(f"clients/bad/logs/{number:03}", b"")
    whole = run("merge", address, "-o", "w.safetensors", report="w.report.json")
    assert whole.verdicts["bad"] == "benign"
    s3.put("clients/bad/logs/038", b"")
    check(row, address, "more than 40 objects")


def test_of_a_client_with_too_many_objects_the_rest_is_passed_over(
    s3: Endpoint, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_KEYS_OF_ONE", 11)
    monkeypatch.setattr(listing, "_CHUNK", 10)
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # of one answer; S3: 1,000
    for number in range(60):
        s3.put(f"clients/bad/logs/{number:02}", b"")
    s3.requests.clear()
    ran = run("inspect", address)
    assert ran.out.count("benign") == 4
    lists = [r for r in s3.requests if "list-type" in r.query]
    assert len(lists) == 3  # 10 keys, 10 more; then all from behind that client on


@covers(103)
def test_too_many_objects_in_all(
    s3: Endpoint, address: str, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    count = len(s3.keys())
    monkeypatch.setattr(listing, "MAX_KEYS", count)
    assert run("inspect", address).code == 0
    monkeypatch.setattr(listing, "MAX_KEYS", count - 1)
    ran = run("merge", address, "-o", "m.safetensors")
    assert ran.code == ROWS[row].code
    assert f"more than {count - 1} objects" in ran.words


@pytest.mark.parametrize(
    ("row", "key", "says"),
    [
        (104, "clients//bad.safetensors", "an empty part (//)"),
        (104, "clients/../x", "a part '.' or '..'"),
        (104, "clients/a\x02b.safetensors", "a control character"),
    ],
    ids=[f"row-104-{n}" for n in range(3)],
)
def test_a_wrong_key_beside_the_clients(
    s3: Endpoint, address: str, row: int, key: str, says: str
) -> None:
    s3.put(key, b"x")
    ran = run("merge", address, "-o", "m.safetensors")
    assert ran.code == ROWS[row].code
    assert says in ran.words
    assert not Path("m.safetensors").exists()


@covers(105)
def test_an_object_that_is_a_folder_too(s3: Endpoint, address: str, row: int) -> None:
    s3.put(f"clients/bad/{WEIGHTS}/x", b"x")
    check(row, address, "is an object, and a folder of others")


def _replaced(s3: Endpoint, request: Request) -> None:
    s3.put(request.key, b"another object")


def _gone(s3: Endpoint, request: Request) -> None:
    s3.delete(request.key)


def _refused(s3: Endpoint, request: Request) -> tuple[str, bytes]:
    return "403 Forbidden", b"secret"


def _failing(s3: Endpoint, request: Request) -> tuple[str, bytes]:
    return "500 Internal Error", b"secret"


@pytest.mark.parametrize(
    ("row", "happens", "says"),
    [
        (106, _replaced, "changed while reading"),
        (106, _gone, "changed while reading"),
        (106, _refused, "Permission denied"),
        (106, _failing, "the store answers with status 500"),
    ],
    ids=[f"row-106-{name}" for name in ("replaced", "gone", "refused", "failing")],
)
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_an_object_that_can_not_be_read(
    s3: Endpoint,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    row: int,
    happens: Callable[[Endpoint, Request], tuple[str, bytes] | None],
    says: str,
    name: str,
) -> None:
    monkeypatch.setattr(connect, "MAX_RETRIES", 1)
    before = s3.get(f"clients/bad/{name}")

    def act(request: Request) -> tuple[str, bytes] | None:
        if request.method != "GET" or request.key != f"clients/bad/{name}":
            return None
        return happens(s3, request)

    def restore(request: Request) -> tuple[str, bytes] | None:
        if "list-type" in request.query:  # a new run finds the object as it was
            s3.put(f"clients/bad/{name}", before)
        return act(request)

    s3.before = restore
    check(row, address, says)
