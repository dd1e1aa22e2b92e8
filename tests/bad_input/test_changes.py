"""A file that changes while it is read, or between two readings."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import open_safetensors
from tests import cohorts
from tests.bad_input.clients import DATA, WEIGHTS
from tests.bad_input.running import GOOD
from tests.bad_input.table import ROWS, covers
from tests.workflow.test_changes import at

OTHER = cohorts.client_bytes(cohorts.unrelated())


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 8)


def grow(file: Path) -> None:
    with open(file, "ab") as stream:
        stream.write(b"more")


def rewrite(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.write(OTHER)


def replace(file: Path) -> None:
    (file.parent.parent.parent / "new").write_bytes(OTHER)
    os.replace(file.parent.parent.parent / "new", file)


def link(file: Path) -> None:
    secret = file.parent.parent.parent / "secret"
    secret.write_bytes(OTHER)
    file.unlink()
    file.symlink_to(secret)


def link_folder(file: Path) -> None:
    secret = file.parent.parent.parent / "elsewhere"
    secret.mkdir()
    (secret / file.name).write_bytes(OTHER)
    shutil.rmtree(file.parent)
    file.parent.symlink_to(secret)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def vanish(file: Path) -> None:
    file.unlink()


@pytest.fixture(scope="module")
def good_alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The merged bytes of the good clients."""
    folder = tmp_path_factory.mktemp("good")
    clair_cli.merge(cohorts.save(folder / "clients", GOOD), folder / "m.safetensors")
    return (folder / "m.safetensors").read_bytes()


CHANGES = [cut, grow, rewrite, replace, link, link_folder, fifo, folder, vanish]


@covers(64)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["comparing", "merging"])
def test_between_two_passes(
    tmp_path: Path, row: int, change: Callable[[Path], None], stage: str, good_alone: bytes
) -> None:
    assert len(OTHER) == len(DATA)
    clients = cohorts.save(tmp_path / "clients", {**GOOD, "bad": cohorts.honest(4)["c3"]})
    out, file = tmp_path / "m.safetensors", clients / "bad" / WEIGHTS
    result = clair_cli.merge(clients, out, progress=at(stage, file, change))
    verdicts = {c.name: c.verdict for c in result.report.clients}
    assert (result.report.exit_code, verdicts["bad"]) == (ROWS[row].code, "rejected")
    (bad,) = result.report.with_verdict("rejected")
    assert "changed while reading" in bad.reasons[0].text
    assert bad.path == file.as_posix()
    assert bad.sha256 is None or bad.sha256 == hashlib.sha256(DATA).hexdigest(), "as first read"
    assert out.read_bytes() == good_alone


@covers(64)
@pytest.mark.skipif(sys.platform != "linux", reason="looks a descriptor's path up in /proc")
def test_what_a_disk_gives_once_only_is_one_clients_loss(
    tmp_path: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clair_cli.formats import stores
    from clair_cli.workflow import read as reading

    clients = cohorts.save(tmp_path / "clients", {**GOOD, "bad": cohorts.honest(4)["c3"]})
    read = stores.read_into

    def failing(fd: int, memory: memoryview) -> int:
        if f"{os.sep}bad{os.sep}" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, "as of a broken disk")
        return read(fd, memory)

    monkeypatch.setattr(reading, "KEPT_BYTES", 1)
    monkeypatch.setattr(stores, "read_into", failing)
    report = clair_cli.merge(clients, tmp_path / "m.safetensors").report
    assert report.exit_code == ROWS[row].code
    (bad,) = report.with_verdict("rejected")
    assert bad.name == "bad" and "Input/output error" in bad.reasons[0].text
    assert len(report.with_verdict("benign")) == len(GOOD)


@covers(64)
def test_the_same_bytes_in_a_new_file_are_no_change(tmp_path: Path, row: int) -> None:
    clients = cohorts.save(tmp_path / "clients", GOOD)
    file = clients / "c0" / WEIGHTS

    def copy(file: Path) -> None:
        shutil.copy(file, tmp_path / "new")
        os.replace(tmp_path / "new", file)

    result = clair_cli.merge(clients, progress=at("merging", file, copy))
    assert (result.report.exit_code, len(result.report.with_verdict("benign"))) == (0, 3)


@covers(64)
@pytest.mark.parametrize("change", [cut, grow, rewrite])
def test_during_the_first_pass(
    tmp_path: Path, row: int, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash and the digests are those of the bytes that this one pass has seen."""
    from clair_cli.formats.safetensors import check as safetensors_scan

    path = tmp_path / "a" / "b" / "x.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    monkeypatch.setattr(safetensors_scan, "CHUNK_BYTES", 64)
    read, passed = os.read, 0

    def reading(fd: int, count: int) -> bytes:
        nonlocal passed
        data = read(fd, count)
        passed += 1
        if passed == 40:
            change(path)
        return data

    monkeypatch.setattr(os, "read", reading)
    try:
        file = open_safetensors(path, Limits())
    except RejectedClient as error:
        assert "changed while reading" in error.message
        assert change is not rewrite, "same size, and read on to its end"
        return
    monkeypatch.undo()
    assert change is rewrite
    assert file.sha256 not in (hashlib.sha256(DATA).hexdigest(), hashlib.sha256(OTHER).hexdigest())
    changed = 0
    for key in file.tensors:
        try:
            file.raw(key)
        except RejectedClient as error:
            assert "changed while reading" in error.message
            changed += 1
    assert 0 < changed < len(file.tensors)


@covers(64)
def test_one_sequential_pass(tmp_path: Path, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is read once and in order, and nothing is mapped."""
    import mmap

    path = tmp_path / "x.safetensors"
    path.write_bytes(DATA)
    seen: list[tuple[int, int]] = []
    read = os.read

    def reading(fd: int, count: int) -> bytes:
        begin = os.lseek(fd, 0, os.SEEK_CUR)
        data = read(fd, count)
        seen.append((begin, begin + len(data)))
        return data

    def mapped(*_: Any, **__: Any) -> Any:
        raise AssertionError("mapped")

    monkeypatch.setattr(os, "read", reading)
    monkeypatch.setattr(mmap, "mmap", mapped)
    file = open_safetensors(path, Limits())
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()
    peeked, *rest = [span for span in seen if span[0] != span[1]]
    assert peeked == (0, 512), "what kind of file it is"
    assert rest[0][0] == 8 and rest[-1][1] == len(DATA)
    assert all(a[1] == b[0] for a, b in pairwise(rest))
