"""A file that is written while the rest of it is made: whole under its name, or nowhere."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clair_cli.errors import OutputError
from clair_cli.output import draft as draft_module
from clair_cli.output import targets
from clair_cli.output.draft import Draft
from clair_cli.output.publish import Output, leftovers, publish

PARTS = [b"head", memoryview(bytes(range(256)) * 40_000), b"", b"end"]
WHOLE = b"".join(PARTS)


def drafted(path: Path, parts: list[bytes | memoryview] = PARTS) -> Draft:
    draft = Draft(path)
    draft.begin(len(WHOLE))
    for part in parts:
        draft.add(part)
    return draft


def temporary(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.name.endswith(".tmp")]


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(500):
        if what():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


def test_it_is_written_before_it_is_whole_and_published_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.data"
    draft = drafted(path)
    wait_for(lambda: [p.stat().st_size for p in temporary(tmp_path)] == [len(WHOLE)])
    assert not path.exists() and leftovers(path) == []
    inode = temporary(tmp_path)[0].stat().st_ino
    assert draft.sha256() == hashlib.sha256(WHOLE).hexdigest()
    publish([Output(tmp_path / "r.json", b"{}"), Output(path, draft)])
    draft.discard()
    assert path.read_bytes() == WHOLE and path.stat().st_ino == inode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.data", "r.json"]


def test_inside_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "merged"
    publish([Output(path, {"sub/a.bin": drafted(path), "b": b"x"})])
    assert (path / "sub/a.bin").read_bytes() == WHOLE
    assert temporary(tmp_path) == []


def test_permissions_are_those_of_a_file_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    publish([Output(path, drafted(path))])
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    publish([Output(path, drafted(path), force=True)])
    assert path.stat().st_mode & 0o777 == 0o640


def test_begun_again_it_holds_only_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "a"
    draft = drafted(path, [b"other", b"things"])
    draft.begin(3)
    draft.add(b"new")
    publish([Output(path, draft)])
    assert path.read_bytes() == b"new" and temporary(tmp_path) == []


def test_what_was_written_is_let_go(tmp_path: Path) -> None:
    """Except for the last part, which the thread may still hold."""
    draft, made = drafted(tmp_path / "a", []), [bytearray(b"x" * 1000) for _ in range(4)]
    for one in made:
        draft.add(memoryview(one))

    def is_free(one: bytearray) -> bool:
        try:
            one.append(0)
        except BufferError:  # somebody has a view of it
            return False
        return True

    wait_for(lambda: all(is_free(one) for one in made[:-1]))
    draft.discard()


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    draft = drafted(tmp_path / "a")
    draft.discard()
    draft.discard()
    wait_for(lambda: not any(t.name == "clair-draft" for t in threading.enumerate()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["write", "fsync", "read_into"])
def test_an_error_of_the_system_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(draft_module if function == "read_into" else os, function, fail)
    draft = drafted(tmp_path / "a")
    assert draft.sha256() == hashlib.sha256(WHOLE).hexdigest()
    with pytest.raises(OutputError, match="No space left"):
        publish([Output(tmp_path / "a", draft)])
    monkeypatch.undo()
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(len(data))))
    draft = drafted(tmp_path / "a")
    with pytest.raises(OutputError, match="reads back differently"):
        publish([Output(tmp_path / "a", draft)])
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "free_bytes", lambda _: len(WHOLE) // 2)
    with pytest.raises(OutputError, match="free"):
        drafted(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_answered_while_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (go.wait(20), real(fd)))
    draft = drafted(tmp_path / "a")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft.move_to(tmp_path / "a", None, stop)
    draft.discard()
    assert list(tmp_path.iterdir()) == []
    go.set()


def test_a_hanging_disk_keeps_nobody_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many parts waiting as may."""
    go, real = threading.Event(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (go.wait(20), real(fd, data))[1])
    draft = drafted(tmp_path / "a", [b"x"] * 9)
    stopping = threading.Thread(target=draft.discard)
    stopping.start()
    stopping.join(2)
    assert not stopping.is_alive() and list(tmp_path.iterdir()) == []
    go.set()
    wait_for(lambda: not any(t.name == "clair-draft" for t in threading.enumerate()))


def test_a_sync_that_fails_on_the_way_fails_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk could not keep is said once only: the last sync may succeed."""
    sync, calls = os.fsync, []

    def once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "input/output error")
        sync(fd)

    monkeypatch.setattr(draft_module, "_SYNC_BYTES", 10)
    monkeypatch.setattr(os, "fsync", once)
    draft = Draft(tmp_path / "file")
    draft.begin(400)
    for _ in range(4):
        draft.add(bytes(100))
    draft.sha256()
    with pytest.raises(OSError, match="input/output error"):
        draft.move_to(tmp_path / "other", None, lambda: None)
    draft.discard()
    assert not list(tmp_path.iterdir())
