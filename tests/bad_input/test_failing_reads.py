"""Whatever fails while one client is read is that client's loss, and never the round's."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.adapters import config_source
from clair_cli.cohort import load as cohort
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.formats.strict_json import MAX_DEPTH, check_depth, parse_strict
from tests import cohorts
from tests.bad_input.clients import CONFIG, WEIGHTS
from tests.hostile import client, config, only_rejection, pair

FAILURES = [
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError("without a number"),
    RecursionError(),
    MemoryError(),
]
IDS = [repr(error) for error in FAILURES]


def nested(depth: int) -> Any:
    """Lists in one another."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    client(tmp_path / "clients", "bad")
    client(tmp_path / "clients", "good")
    return tmp_path / "clients"


def fail(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
    """Let a function fail where it gets one of the bad client's paths."""
    real = getattr(owner, name)

    def failing(*args: Any, **options: Any) -> Any:
        given = [*map(text, args), f"{text(options.get('dir_fd'))}{os.sep}{args[0]}"]
        if any(f"{os.sep}bad{os.sep}" in f"{path}{os.sep}" for path in given):
            raise error
        return real(*args, **options)

    monkeypatch.setattr(owner, name, failing)


def text(value: object) -> str:
    """The path that an argument is, or is a descriptor of."""
    if type(value) is int and sys.platform == "linux":
        try:
            return os.readlink(f"/proc/self/fd/{value}")
        except OSError:
            return ""
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""  # type: ignore[arg-type]


CALLS = [
    (os, "listdir"),
    (os, "stat"),
    (os, "lstat"),
    (os, "open"),
    pytest.param(os, "fstat", marks=pytest.mark.skipif(sys.platform != "linux", reason="/proc")),
    pytest.param(os, "read", marks=pytest.mark.skipif(sys.platform != "linux", reason="/proc")),
    (cohort, "open_safetensors"),
    (config_source, "real_path"),
    (config_source, "read_small"),
]


@pytest.mark.parametrize("error", FAILURES, ids=IDS)
@pytest.mark.parametrize(("owner", "name"), CALLS)
def test_a_failing_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception
) -> None:
    fail(monkeypatch, owner, name, error)
    entry = only_rejection(folder)
    assert entry.message.startswith("client 'bad'")
    if isinstance(error, OSError):
        assert "unreadable" in entry.message
        assert (error.strerror or "without a number") in entry.message


@pytest.mark.parametrize("error", FAILURES, ids=IDS)
def test_a_failing_look_at_a_config_never_means_that_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Else the cohort's own config, with another scale, would count."""
    (folder / CONFIG).write_text(json.dumps(config(lora_alpha=100)))
    real = os.lstat

    def failing(path: Any, *args: Any, **options: Any) -> Any:
        if text(path).endswith(f"{os.sep}bad{os.sep}{CONFIG}"):
            raise error
        return real(path, *args, **options)

    monkeypatch.setattr(os, "lstat", failing)
    assert only_rejection(folder).name == "bad"


def test_a_link_that_is_none_any_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and the reading of its target."""
    file = folder / "bad" / CONFIG
    file.rename(folder / "bad" / "config.txt")
    file.symlink_to("config.txt")

    def gone(path: Any, *args: Any, **options: Any) -> str:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))

    monkeypatch.setattr(os, "readlink", gone)
    entry = only_rejection(folder)
    assert f"'{CONFIG}' is unreadable: Invalid argument" in entry.message


@pytest.mark.parametrize("error", FAILURES, ids=IDS)
def test_a_failing_client_in_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Config(dict[str, Any]):
        def to_dict(self) -> Any:
            raise error

    clients = {"bad": (pair(), Config()), "good": (pair(), config())}
    found = adapters_from_memory(clients)
    assert [a.name for a in found.adapters] == ["good"]
    assert found.rejected[0].message.startswith("client 'bad'")


def test_a_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = cohorts.save(tmp_path / "clients", {**cohorts.honest(3), "bad": cohorts.unrelated()})
    fail(monkeypatch, config_source, "read_small", OSError(errno.EIO, "Input/output error"))
    report = clair_cli.merge(clients, tmp_path / "m.safetensors").report
    assert report.exit_code == 0
    (bad,) = report.with_verdict("rejected")
    assert "unreadable: Input/output error" in bad.reasons[0].text


@pytest.mark.skipif(sys.platform != "linux", reason="looks a descriptor's path up in /proc")
def test_a_disk_that_fails_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are read again: what fails then is a change of that client."""
    from clair_cli.formats import stores
    from clair_cli.workflow import read as reading

    monkeypatch.setattr(reading, "KEPT_BYTES", 1)
    clients = cohorts.save(tmp_path / "clients", {**cohorts.honest(3), "bad": cohorts.unrelated()})
    fail(monkeypatch, stores, "read_into", OSError(errno.ESTALE, "Stale file handle"))
    report = clair_cli.merge(clients, tmp_path / "m.safetensors").report
    assert report.exit_code == 0
    (bad,) = report.with_verdict("rejected")
    assert "changed while reading" in bad.reasons[0].text
    assert f"'{WEIGHTS}' is unreadable: Stale file handle" in bad.reasons[0].text


# How deep a document may be


@pytest.mark.parametrize("make", [nested, lambda n: {"a": nested(n - 1)}])
def test_depth_of_documents(make: Callable[[int], Any]) -> None:
    for depth in (1, 2, MAX_DEPTH):
        if depth > 1 or make is nested:
            value = make(depth)
            assert parse_strict(json.dumps(value).encode(), "it", 10**6) == value
            check_depth(value)
    for value in (make(MAX_DEPTH + 1), make(900)):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_strict(json.dumps(value).encode(), "it", 10**6)
        with pytest.raises(ValueError, match="nested too deeply"):
            check_depth(value)


def test_brackets_in_strings_are_no_depth() -> None:
    value = ["[" * 50, '"' + "{" * 50, "\\", "\\" + "[" * 50, {"[" * 40 + '\\"': 1}, "]" * 5]
    assert parse_strict(json.dumps(value).encode(), "it", 10**6) == value
    wide = [[], {}] * 100
    assert parse_strict(json.dumps(wide).encode(), "it", 10**6) == wide


def test_a_value_that_holds_itself() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    with pytest.raises(ValueError, match="nested too deeply"):
        check_depth(loop)


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 977])
def test_depth_of_one_clients_config(tmp_path: Path, depth: int) -> None:
    """The config itself is one level more."""
    clients = cohorts.save(tmp_path / "clients", {**cohorts.honest(3), "bad": cohorts.unrelated()})
    fields = json.loads((clients / "bad" / CONFIG).read_text())
    deep = json.dumps({**fields, "runtime_config": "here"}).replace(
        '"here"', "[" * depth + "]" * depth
    )
    (clients / "bad" / CONFIG).write_text(deep)
    result = clair_cli.merge(clients, tmp_path / "m.safetensors")
    assert result.report.exit_code == 0
    rejected = [c.name for c in result.report.with_verdict("rejected")]
    assert rejected == ([] if depth < MAX_DEPTH else ["bad"])


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 977])
def test_depth_of_one_clients_config_in_memory(depth: int) -> None:
    bad = {**config(), "runtime_config": nested(depth)}
    found = adapters_from_memory({"bad": (pair(), bad), "good": (pair(), config())})
    assert [a.name for a in found.adapters] == ["bad", "good"][depth >= MAX_DEPTH :]
