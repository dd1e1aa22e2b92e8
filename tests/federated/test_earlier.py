"""A server adds up what its rounds saw of each client: surer verdicts, and never other ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from clair_cli.errors import UsageError
from clair_cli.federated import Result, Server
from tests.federated.clients import State, config, trained

FOUR = range(4)


def weak(server: Server, seed: int, flipped: int | None = None) -> dict[int, State]:
    """Four clients who share hardly enough; one may flip what it trained."""
    return {
        k: trained(
            server.adapter_for(k), 10 * seed + k, own=1.0, sign=-1.0 if k == flipped else 1.0
        )
        for k in FOUR
    }


def sure(result: Result) -> list[str | None]:
    return [client.confidence for client in result.report.clients]


def alone(result: Result) -> list[str | None]:
    found = result.report.clients
    return [c.earlier.alone if c.earlier else c.confidence for c in found]


def counted(result: Result) -> list[int]:
    return [c.earlier.rounds if c.earlier else 0 for c in result.report.clients]


def test_rounds_make_verdicts_surer_and_the_first_does_not_count() -> None:
    server = Server(config())
    results = [server.aggregate(weak(server, n)) for n in range(4)]
    assert [counted(result) for result in results] == [[0] * 4, [0] * 4, [1] * 4, [2] * 4]
    assert alone(results[3]) == ["clear", "likely", "clear", "likely"]
    assert sure(results[3]) == ["clear"] * 4
    assert all(c.weight == pytest.approx(0.25, abs=0.01) for c in results[3].report.clients)


def test_who_was_honest_for_five_rounds_is_condemned_in_the_one_in_which_it_is_not() -> None:
    server = Server(config())
    for n in range(5):
        server.aggregate(weak(server, n))
    result = server.aggregate(weak(server, 5, flipped=3))
    (turned,) = (c for c in result.report.clients if c.name == "3")
    assert (turned.verdict, turned.weight) == ("contaminated", 0.0)
    assert turned.earlier is not None and not turned.earlier.agrees


def test_a_round_that_is_lost_adds_nothing() -> None:
    server = Server(config())
    for n in range(3):
        server.aggregate(weak(server, n))
    assert server.aggregate({0: trained(server.adapter_for(0), 7)}).outcome == "keep"
    assert counted(server.aggregate(weak(server, 3))) == [2] * 4


def test_a_round_that_was_judged_and_not_merged_adds_nothing() -> None:
    """Its clients start from the same adapter again, and say the same again."""
    server = Server(config(), fail_on="contaminated")
    for n in range(2):
        server.aggregate({k: trained(server.adapter_for(k), 10 * n + k) for k in FOUR})
    failed = server.aggregate(
        {k: trained(server.adapter_for(k), 30 + k, sign=-1.0 if k == 3 else 1.0) for k in FOUR}
    )
    assert (failed.outcome, failed.report.cohort.outcome) == ("keep", "judged")
    again = server.aggregate({k: trained(server.adapter_for(k), 40 + k) for k in FOUR})
    assert counted(again) == [1] * 4


def test_the_last_nine_merges_are_remembered_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    server = Server(config())
    for n in range(11):
        server.aggregate({k: trained(server.adapter_for(k), 10 * n + k) for k in FOUR})
    replies = {k: trained(server.adapter_for(k), 110 + k) for k in FOUR}
    server.save(path)
    again = Server.load(path)
    one, other = server.aggregate(replies), again.aggregate(replies)
    assert one.report == other.report and counted(other) == [9] * 4


def test_a_file_of_a_version_that_did_not_count_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    server = Server(config())
    for n in range(3):
        server.aggregate(weak(server, n))
    server.save(path)
    changed(path, None)
    assert counted(Server.load(path).aggregate(weak(server, 3))) == [0] * 4


@pytest.mark.parametrize("earlier", [3, [3], [{}], [{"shown": "x", "clients": {"0": {}}}]])
def test_a_damaged_file_is_told(tmp_path: Path, earlier: object) -> None:
    path = tmp_path / "s.safetensors"
    Server(config()).save(path)
    changed(path, earlier)
    with pytest.raises(UsageError, match="is no file of a server"):
        Server.load(path)


def changed(path: Path, earlier: object) -> None:
    """Put something else in the place of what earlier rounds saw; None takes it out."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    state = json.loads(header["__metadata__"]["clair_server"])
    del state["earlier"]
    state |= {} if earlier is None else {"earlier": earlier}
    header["__metadata__"]["clair_server"] = json.dumps(state)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
