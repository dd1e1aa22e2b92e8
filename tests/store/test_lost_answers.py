"""Writes to S3 whose answer is lost: what is there decides, and nothing of ours is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import clair_cli
from clair_cli.errors import OutputError
from clair_cli.store import connect
from tests import cohorts
from tests.store.s3 import Answer, Endpoint, Request, s3
from tests.store.test_s3_outputs import FOLDER, WEIGHTS, clients, way, writes

__all__ = ["clients", "s3", "way"]
pytestmark = pytest.mark.remote


def makes(request: Request, key: str) -> bool:
    """Whether a request makes an object appear: alone, or as the last one for its parts."""
    whole = request.method == "PUT" and not request.query
    return request.key == key and (whole or (request.method == "POST" and "Id=" in request.query))


def written_before(s3: Endpoint, clients: Path) -> dict[str, bytes]:
    """What a run writes, which is removed again."""
    clair_cli.merge(clients, s3.at("merged"))
    made = {key: s3.get(key) for key in FOLDER}
    for key in made:
        s3.delete(key)
    return made


def test_an_answer_that_is_lost_is_no_failure(s3: Endpoint, clients: Path, way: str) -> None:
    """The object is there, and the next try may not replace it."""
    made, lost = written_before(s3, clients), list[str]()

    def before(request: Request) -> Answer | None:
        key = next((key for key in made if makes(request, key)), "")
        if not key or key in lost:
            return None
        lost.append(key)
        s3.put(key, made[key])
        return "500 Internal Error", b""

    s3.before = before
    clair_cli.merge(clients, s3.at("merged"))
    assert sorted(lost) == s3.keys() == FOLDER
    assert cohorts.clair("verify", s3.at("merged")).exit_code == 0


def test_another_object_of_the_same_size_is_not_taken_for_ours(
    s3: Endpoint, clients: Path, way: str
) -> None:
    key = f"merged/{WEIGHTS}"
    data = written_before(s3, clients)[key]
    others = data[:-1] + bytes([data[-1] ^ 1])
    s3.before = lambda r: s3.put(key, others) if makes(r, key) else None
    with pytest.raises(OutputError, match="appeared during the run"):
        clair_cli.merge(clients, s3.at("merged"))
    assert s3.keys() == [key]
    assert s3.get(key) == others


def test_what_nobody_said_was_written_is_removed_too(
    s3: Endpoint, clients: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Neither the write is answered, nor the look that follows."""
    monkeypatch.setattr(connect, "MAX_RETRIES", 0)
    key, failed = f"merged/{WEIGHTS}", list[str]()
    data = written_before(s3, clients)[key]

    def before(request: Request) -> Answer | None:
        if makes(request, key):
            s3.put(key, data)
        elif request.method != "HEAD" or request.key != key or len(failed) != 1:
            return None
        failed.append(request.method)
        return "503 Slow Down", b""

    s3.before = before
    with pytest.raises(OutputError, match="not written: the store answers with status 503"):
        clair_cli.merge(clients, s3.at("merged"))
    assert failed[1:] == ["HEAD"]
    assert s3.keys() == []


def test_results_stand_where_the_last_look_at_them_fails(s3: Endpoint, clients: Path) -> None:
    def before(request: Request) -> Answer | None:
        last = request.method == "HEAD" and f"PUT merged/{WEIGHTS}" in writes(s3)
        return ("403 Forbidden", b"") if last else None

    s3.before = before
    clair_cli.merge(clients, s3.at("merged"))
    assert "HEAD" in [r.method for r in s3.requests[-2:]]
    assert s3.keys() == FOLDER
