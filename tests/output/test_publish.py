"""The publisher: whole or not at all, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import OutputError, UsageError
from clair_cli.output import draft, publish, rename, targets
from clair_cli.output.publish import Output
from clair_cli.output.targets import check_target


@pytest.fixture
def umask() -> Iterator[int]:
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


@pytest.fixture(params=["exchange", "link", "neither"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Systems with a call that exchanges two names, with hard links only, and with neither."""
    if request.param != "exchange":
        monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    if request.param == "neither":
        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def no_links(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_obeys_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "out.bin"
    publish.publish([Output(path, b"new")])
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o640
    assert os.listdir(tmp_path) == ["out.bin"]


def test_force_replaces_and_keeps_the_mode(tmp_path: Path, umask: int, renames: str) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    path.chmod(0o664)
    with pytest.raises(OutputError, match="exists") as caught:
        publish.publish([Output(path, b"new")])
    assert "--force" in caught.value.hint
    assert path.read_bytes() == b"old"
    publish.publish([Output(path, b"new", force=True)])
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o664


@pytest.mark.parametrize("function", ["write", "fsync", "read_into", "swap"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_temp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise error

    owner = {"swap": publish, "read_into": draft}.get(function, os)
    monkeypatch.setattr(owner, function, fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        publish.publish([Output(path, b"new", force=True)])
    monkeypatch.undo()
    if expected is OutputError:
        assert "out.bin" in str(caught.value)
        assert "No space left on device" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_bytes_that_read_back_differently_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(len(data))))
    with pytest.raises(OutputError, match="reads back differently"):
        publish.publish([Output(tmp_path / "out.bin", b"new")])
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    publish.publish([Output(tmp_path / "out.bin", b"0123456789")])
    assert (tmp_path / "out.bin").read_bytes() == b"0123456789"


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    link.symlink_to("real.bin")
    publish.publish([Output(link, b"1")])
    publish.publish([Output(link, b"2", force=True)])
    assert link.is_symlink()
    assert real.read_bytes() == b"2"
    assert not real.is_symlink()


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, kind, words in [("folder", "file", "a folder"), ("file", "folder", "file")]:
        with pytest.raises(OutputError, match=words):
            check_target(tmp_path / name, force=True, kind=kind, inputs=())
    cases = [("fifo", "file", "a FIFO")]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(tmp_path / "sock"))
        cases.append(("sock", "file", "a socket"))
        for name, kind, words in cases:
            with pytest.raises(UsageError, match=words):
                check_target(tmp_path / name, force=True, kind=kind, inputs=())
    with pytest.raises(UsageError, match="does not exist"):
        check_target(tmp_path / "no" / "out", force=True, kind="file", inputs=())
    with pytest.raises(UsageError, match="a FIFO"):
        publish.publish([Output(tmp_path / "fifo", b"x", force=True)])
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_outputs_apart_from_inputs(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    clients.mkdir()
    file = tmp_path / "in.bin"
    file.write_text("x")
    (tmp_path / "link").symlink_to("in.bin")
    os.link(file, tmp_path / "hard")
    cases: list[tuple[Path, Any, Path, str]] = [
        (clients / "out", "folder", clients, "lies inside the input"),
        (clients / "out.safetensors", "file", clients, "lies inside the input"),
        (clients, "folder", clients, "is the input"),
        (file, "file", file, "is the input"),
        (tmp_path / "link", "file", file, "is the input"),
        (tmp_path / "hard", "file", file, "is the input"),
        (tmp_path, "folder", clients, "holds the input"),
    ]
    for path, kind, given, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            check_target(path, force=True, kind=kind, inputs=[given])
        assert path.name in caught.value.message
        assert given.name in caught.value.message
    check_target(tmp_path / "clients-out", force=False, kind="folder", inputs=[clients])


def test_an_unwritable_parent_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_target(tmp_path / "out", force=False, kind="file", inputs=())


@pytest.mark.parametrize(("free", "enough"), [(16_384, True), (16_383, False)])
def test_room_for_a_report_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, enough: bool
) -> None:
    monkeypatch.setattr(targets, "free_bytes", lambda folder: free)
    refused = contextlib.nullcontext() if enough else pytest.raises(OutputError, match="no room")
    with refused:
        check_target(tmp_path / "out", force=False, kind="file", inputs=())


FILES = {"adapter_model.safetensors": b"1", "client/adapter_config.json": b"2"}


def test_folders(tmp_path: Path, umask: int, renames: str) -> None:
    out = tmp_path / "out"
    publish.publish([Output(out, FILES)])
    assert (out / "client/adapter_config.json").read_bytes() == b"2"
    assert mode(out) == 0o750
    with pytest.raises(OutputError, match="exists"):
        publish.publish([Output(out, FILES)])
    publish.publish([Output(out, {"adapter_model.safetensors": b"3"}, force=True)])
    assert os.listdir(out) == ["adapter_model.safetensors"]
    (out / "thesis.tex").write_text("dear")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which no run of clair wrote"):
        publish.publish([Output(out, FILES, force=True)])
    assert (out / "thesis.tex").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    publish.publish([Output(tmp_path / "empty", FILES)])
    assert sorted(os.listdir(tmp_path)) == ["empty", "out"]
    for name in ("../x", "/x", "a//b", "", "a/./b"):
        with pytest.raises(ValueError, match="not a path inside"):
            publish.publish([Output(tmp_path / "new", {name: b""})])


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failing_rename_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    out = tmp_path / "out"
    publish.publish([Output(out, FILES)])
    real, calls = os.rename, []

    def fail(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == nth:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(rename, "_renameat2", lambda *_: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        publish.publish([Output(out, {"report.json": b"new"}, force=True)])
    monkeypatch.undo()
    assert (out / "adapter_model.safetensors").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["out"]
