"""`Server`: rounds of tiny clients without any framework; its arguments, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import OutputError, UsageError
from clair_cli.federated import Result, Server
from clair_cli.store.address import place_of
from tests.federated.clients import config, trained
from tests.federated.rounds import (
    FLIPPED,
    MIXED,
    cohort,
    left_out,
)


def test_three_rounds_leave_both_attackers_out_of_each() -> None:
    server = Server(config())
    for n in range(3):
        result = server.aggregate(cohort(server, n))
        assert (result.outcome, result.round, left_out(result)) == ("use", n + 1, set(FLIPPED))
    assert [record.outcome for record in server.history] == ["judged"] * 3
    assert server.history[-1].verdicts["3"] == "contaminated"
    assert server.history[-1].sha256 == result.report.merged.sha256  # type: ignore[union-attr]


def test_the_last_merge_stays_there_until_the_next(tmp_path: Path) -> None:
    server = Server(config())
    assert server.tensors is None
    merged = server.aggregate(cohort(server)).tensors
    assert server.aggregate({}).tensors is None and merged is not None
    server.save(tmp_path / "s.safetensors")
    for kept in (server.tensors, Server.load(tmp_path / "s.safetensors").tensors):
        assert kept is not None and kept.keys() == merged.keys()
        assert all((kept[key] == array).all() for key, array in merged.items())


def test_the_merge_is_the_one_of_the_python_function() -> None:
    server = Server(config())
    first = cohort(server)
    one = server.aggregate(first)
    options: dict[str, Any] = {"rank": "same", "keep_alpha": True, "max_weight": 0.25}
    twin = clair_cli.merge({str(k): (s, config()) for k, s in first.items()}, fresh=True, **options)
    assert one.tensors is not None and twin.tensors is not None
    assert all((one.tensors[key] == t.numpy()).all() for key, t in twin.tensors.items())
    second = cohort(server, 1)
    two = server.aggregate(second)
    twin = clair_cli.merge(
        {str(k): (s, config()) for k, s in second.items()},
        previous=(twin.tensors, twin.config), **options,
    )  # fmt: skip
    assert two.tensors is not None and twin.tensors is not None
    assert all((two.tensors[key] == t.numpy()).all() for key, t in twin.tensors.items())
    assert two.report.clients == twin.report.clients


def test_without_what_it_remembers_the_later_rounds_would_be_lost_or_wrong() -> None:
    """The task's share of what is sent is in every reply: with no previous adapter, all agree."""
    server = Server(config())
    for n in range(3):
        server.aggregate(cohort(server, n))
    replies = {str(k): (s, config()) for k, s in cohort(server, 3).items()}
    assert clair_cli.merge(replies, fresh=True).report.with_verdict("contaminated") == ()
    assert left_out(server.aggregate({k: s for k, (s, _) in replies.items()})) == set(FLIPPED)


def test_a_finding_that_fails_a_round_says_so() -> None:
    result = Server(config(), fail_on="contaminated").aggregate(cohort(Server(config())))
    assert (result.outcome, result.tensors, result.report.exit_code) == ("keep", None, 3)
    assert "fail_on is contaminated" in result.why


# the operator's own mistakes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"config": {}}, UsageError),
        ({"config": 3}, UsageError),
        ({"rank": 0}, UsageError),
        ({"rank": 4096}, UsageError),
        ({"max_weight": 0}, UsageError),
        ({"trust": "anna"}, UsageError),
        ({"dtype": "int8"}, UsageError),
        ({"previous": "x"}, TypeError),
        ({"output": "x"}, TypeError),
    ],
)
def test_a_wrong_argument_is_told_at_once(arguments: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        Server(**{"config": config(), **arguments})


# save and load


def test_a_saved_server_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    path = tmp_path / "server.safetensors"
    server = Server({k: config(r) for k, r in enumerate(MIXED)}, trust=[0], max_weight=0.3)
    server.aggregate(cohort(server, ranks=MIXED))
    replies = cohort(server, 1, ranks=MIXED)  # it remembers who was sent what
    server.save(path)
    again = Server.load(path)
    assert again.history == server.history and again.round == 1
    one, other = server.aggregate(replies), again.aggregate(replies)
    assert one.report == other.report
    assert one.tensors is not None and other.tensors is not None
    assert all((one.tensors[key] == array).all() for key, array in other.tensors.items())
    server.save(path)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_load_takes_other_arguments(tmp_path: Path) -> None:
    Server(config()).save(tmp_path / "s.safetensors")
    server = Server.load(tmp_path / "s.safetensors", max_weight=0.5)
    assert server._options["max_weight"] == 0.5


@pytest.mark.parametrize("content", [b"", b"no", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_server(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"s\.safetensors"):
        Server.load(tmp_path / "s.safetensors")


def test_a_server_is_kept_on_this_machine() -> None:
    for call in (Server(config()).save, Server.load):
        with pytest.raises(UsageError, match="expected a path on this machine"):
            call("s3://bucket/s.safetensors")


def test_an_adapter_of_ones_own_may_have_an_address(tmp_path: Path) -> None:
    own = place_of("s3://bucket/own")
    Server(config(), trust_adapter=own).save(tmp_path / "s.safetensors")
    assert Server.load(tmp_path / "s.safetensors")._options["trust_adapter"] == str(own)


def test_what_no_file_can_hold_is_named(tmp_path: Path) -> None:
    server = Server(config(), trust_adapter=(trained(None, 1), config()))
    with pytest.raises(UsageError, match="trust_adapter"):
        server.save(tmp_path / "s.safetensors")
    with pytest.raises((OutputError, UsageError)):
        Server(config()).save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_server_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = Server(config())
    server.aggregate(cohort(server))
    assert capfd.readouterr() == ("", "")


def test_a_result_says_who_is_merged_and_who_is_not_and_why() -> None:
    replies: dict[Any, Any] = {**cohort(Server(config())), "\x1b[2J": 3}
    result = Server(config()).aggregate(replies)
    assert result.merged == {c.name: c.weight for c in result.report.clients if c.weight > 0}
    assert {line.split(":")[0] for line in result.left_out} == {
        "3 is contaminated", "5 is contaminated", r"\x1b[2J is rejected"
    }  # fmt: skip


def test_a_result_tells_a_log_who_is_left_out_and_that_a_round_is_lost() -> None:
    told: list[tuple[str, str]] = []

    def tell(result: Result) -> list[tuple[str, str]]:
        told.clear()
        result.tell(lambda line: told.append(("i", line)), lambda line: told.append(("w", line)))
        return told

    used = Server(config()).aggregate(cohort(Server(config())))
    assert tell(used) == [("i", line) for line in used.left_out] and len(told) == 2
    lost = Server(config()).aggregate({"\x1b": 3})
    assert [kind for kind, _ in tell(lost)] == ["i", "w"]
    assert told[1][1].startswith("nothing is merged: ") and "\x1b" not in str(told)


@pytest.mark.parametrize(
    ("trust", "sign", "outcome"),
    [((), 1.0, "keep"), ((0, "not here"), 1.0, "use"), ((0,), -1.0, "keep")],
)
def test_two_clients_a_round_want_one_that_is_trusted_and_agrees(
    trust: tuple[Any, ...], sign: float, outcome: str
) -> None:
    server = Server(config(), trust=trust)
    for n in range(2):
        replies = {
            k: trained(server.adapter_for(k), 10 * n + k, sign=sign if k else 1.0) for k in range(2)
        }
        result = server.aggregate(replies)
        assert result.outcome == outcome
        assert result.report.exit_code == {"keep": 5, "use": 0}[outcome]
        assert result.report.clients[0].trusted == bool(trust)
        assert trust or result.why.startswith("2 clients: can't tell which is wrong; merge")
