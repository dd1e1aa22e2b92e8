"""Several runs that write to one place, and folders that can't be synced."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import OutputError, UnsyncedWarning
from clair_cli.output import folder_lock, publish
from clair_cli.output.publish import Output
from tests.cohorts import snapshot
from tests.output.pairs import pair

fcntl = pytest.importorskip("fcntl")


# The second run begins when the first has put its report in place, and the first goes on when the
# second is done or waits for the lock.
RUN = """
import os, sys, fcntl
from pathlib import Path
from clair_cli.output import publish
from tests.output.pairs import pair
first, kind = sys.argv[1] == "first", sys.argv[2]
place, flock = publish._DiskJob.place, fcntl.flock
def tell(what): os.write(1, what.encode() + b"\\n")
def placed(job):
    place(job)
    if first and job.output.path.name == "r.json":
        tell("half"); sys.stdin.readline()
def waiting(fd, how):
    try:
        flock(fd, how)
    except BlockingIOError:
        fcntl.flock = flock
        tell("waits")
        raise
publish._DiskJob.place, fcntl.flock = placed, waiting
publish.publish(pair(Path("."), sys.argv[1].encode(), kind))
tell("done")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", [False, True])
def test_the_last_of_two_runs_has_all_of_its_outputs(tmp_path: Path, kind: str, old: bool) -> None:
    if old:
        publish.publish(pair(tmp_path, b"old", kind))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(which: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, which, kind], cwd=tmp_path, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    one = start("first")
    assert one.stdout is not None
    assert one.stdout.readline() == "half\n"
    other = start("second")
    assert other.stdout is not None
    assert other.stdout.readline() in ("waits\n", "done\n")
    assert one.communicate("go\n", timeout=30)[0] == "done\n"
    assert other.communicate(timeout=30)[0] in ("", "done\n")
    assert (one.returncode, other.returncode) == (0, 0)
    assert len(set(snapshot(tmp_path).values())) == 1, "both are of one run"
    assert len(os.listdir(tmp_path)) == 2


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def during(
    monkeypatch: pytest.MonkeyPatch, nth: int, then: Callable[[], None]
) -> list[publish._DiskJob]:
    """Do something once, after the `nth` output was put in place."""
    place, calls = publish._DiskJob.place, []

    def step(job: publish._DiskJob) -> None:
        calls.append(job)
        place(job)
        if len(calls) == nth:
            then()

    monkeypatch.setattr(publish._DiskJob, "place", step)
    return calls


@pytest.mark.parametrize(("nth", "mixed"), [(1, True), (2, False)])
def test_without_locks_a_mixture_is_seen_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, mixed: bool
) -> None:
    """Where the other run was in between; where it came after, all is the other's, and well."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    during(monkeypatch, nth, lambda: publish.publish(pair(tmp_path, b"theirs")))
    if not mixed:
        publish.publish(pair(tmp_path, b"ours"))
        assert set(snapshot(tmp_path).values()) == {b"theirs"}
        return
    with pytest.raises(OutputError, match="another run wrote to the same place") as caught:
        publish.publish(pair(tmp_path, b"ours"))
    assert "r.json' is of that one" in caught.value.message
    assert "m.safetensors' of this" in caught.value.message
    assert snapshot(tmp_path) == {"r.json": b"theirs", "m.safetensors": b"ours"}


def test_a_lock_that_a_stranger_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    looks: list[float] = []

    def stop(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(folder_lock.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt), folder_lock.locked([tmp_path]):
        pytest.fail("it does not hold the lock")
    monkeypatch.setattr(folder_lock, "_WAIT", 0.0)
    publish.publish(pair(tmp_path, b"new"))
    assert set(snapshot(tmp_path).values()) == {b"new"}
    os.close(fd)


def test_a_lock_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    publish.publish(pair(tmp_path, b"new"))
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# Folders that can't be synced


def failing_fsync(monkeypatch: pytest.MonkeyPatch, number: int, folders: set[Path]) -> None:
    """Syncing one of some folders fails."""
    real = os.fsync
    inodes = {os.stat(folder).st_ino for folder in folders}

    def fsync(fd: int) -> None:
        if os.fstat(fd).st_ino in inodes:
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_cant_be_synced_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_fsync(monkeypatch, number, {tmp_path})
    with pytest.warns(UnsyncedWarning, match="could not be synced") as seen:
        publish.publish(pair(tmp_path, b"new"))
    assert os.strerror(number) in str(seen[0].message)
    assert "results are in place" in str(seen[0].message)
    assert set(snapshot(tmp_path).values()) == {b"new"}


def test_each_folder_is_synced_after_the_last_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could undo the renames until then."""
    events: list[object] = []
    place, fsync = publish._DiskJob.place, os.fsync

    def placed(job: publish._DiskJob) -> None:
        place(job)
        events.append("rename")

    def synced(fd: int) -> None:
        fsync(fd)
        events.append(os.fstat(fd).st_ino)

    monkeypatch.setattr(publish._DiskJob, "place", placed)
    monkeypatch.setattr(os, "fsync", synced)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    publish.publish([Output(folder / "x", b"new") for folder in folders])
    assert events[-4:-2] == ["rename", "rename"]
    assert events[-2:] == [os.stat(folder).st_ino for folder in folders]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_system_that_syncs_no_folders_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing_fsync(monkeypatch, number, {tmp_path})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        publish.publish(pair(tmp_path, b"new"))
    assert set(snapshot(tmp_path).values()) == {b"new"}


def test_a_folder_that_cant_be_synced_before_it_is_in_place_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> None:
        assert folder != tmp_path
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(publish, "_sync_folder", fails)
    with pytest.raises(OutputError, match="not written: Input/output error"):
        publish.publish(pair(tmp_path, b"new", "folder"))
    assert os.listdir(tmp_path) == []
