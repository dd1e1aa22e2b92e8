"""A file that is written while the rest of it is made: whole under its name, or nowhere."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import OutputError
from clair_cli.output import draft as draft_module
from clair_cli.output import targets
from clair_cli.output.draft import Draft
from clair_cli.output.publish import Output, publish
from clair_cli.output.temporary import leftovers

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


def test_it_is_written_before_it_is_whole_and_published_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.data"
    draft = drafted(path)
    assert [p.stat().st_size for p in temporary(tmp_path)] == [len(WHOLE)]
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


def test_what_is_discarded_is_gone(tmp_path: Path) -> None:
    draft = drafted(tmp_path / "a")
    draft.discard()
    draft.discard()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="begin first"):
        draft.add(b"more")


@pytest.mark.parametrize("function", ["open", "write", "fsync", "read_into", "rename"])
def test_an_error_of_the_system_names_the_output_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    draft = Draft(tmp_path / "a")
    monkeypatch.setattr(draft_module if function == "read_into" else os, function, fail)
    with pytest.raises(OutputError, match=r"output '.*/a' not written: No space left"):
        draft.begin(len(WHOLE))
        draft.add(WHOLE)
        draft.move_to(tmp_path / "moved")
    monkeypatch.undo()
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_the_file_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def stopped(*args: Any) -> int:
        os.close(real(*args))
        raise KeyboardInterrupt

    draft = Draft(tmp_path / "a")
    monkeypatch.setattr(os, "open", stopped)
    with pytest.raises(KeyboardInterrupt):
        draft.begin(1)
    monkeypatch.undo()
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(len(data))))
    draft = Draft(tmp_path / "a")
    draft.begin(len(WHOLE))
    with pytest.raises(OutputError, match="reads back differently"):
        draft.add(WHOLE)
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "free_bytes", lambda _: len(WHOLE) // 2)
    with pytest.raises(OutputError, match="free"):
        drafted(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_one_cut_short_is_noticed(tmp_path: Path) -> None:
    draft = drafted(tmp_path / "a")
    os.truncate(temporary(tmp_path)[0], len(WHOLE) - 1)
    with pytest.raises(OutputError, match="reads back differently"):
        publish([Output(tmp_path / "a", draft)])
    draft.discard()
    assert list(tmp_path.iterdir()) == []
