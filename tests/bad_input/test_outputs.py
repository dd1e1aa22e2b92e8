"""Rows about where results go: what is refused before any work, and that nothing is lost."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import clair_cli
from clair_cli.output.publish import Output, publish
from tests import cohorts
from tests.bad_input.running import GOOD, OUT, REPORT, merge, run
from tests.bad_input.table import ROWS, covers

CLIENTS = Path("clients")


@pytest.fixture
def clients(work: Path) -> Path:
    return cohorts.save(CLIENTS, GOOD)


def stays(path: str = OUT) -> None:
    """The old file is as it was."""
    assert Path(path).read_bytes() == b"old"


@covers(71)
@pytest.mark.parametrize("name", [OUT, REPORT])
def test_it_exists(clients: Path, row: int, name: str) -> None:
    Path(name).write_bytes(b"old")
    ran = merge()
    assert ran.code == ROWS[row].code
    assert f"output '{name}' exists" in ran.words and "--force" in ran.words
    stays(name)
    assert merge("--force").code == 0


@covers(72)
@pytest.mark.parametrize("args", [("-o", "no/m.safetensors"), ("-o", OUT, "--report", "no/r")])
def test_its_folder_does_not_exist(clients: Path, row: int, args: tuple[str, ...]) -> None:
    ran = run("merge", "clients", *args)
    assert ran.code == ROWS[row].code and "folder 'no'" in ran.words
    assert "does not exist" in ran.words and sorted(os.listdir()) == ["clients"]


@covers(73)
def test_its_folder_is_read_only(unprivileged: Path, row: int) -> None:
    cohorts.save(CLIENTS, GOOD)
    Path("out").mkdir(mode=0o500)
    ran = merge(out=f"out/{OUT}", report=f"out/{REPORT}")
    assert ran.code == ROWS[row].code and "out' is not writable" in ran.words
    assert os.listdir("out") == []
    told: list[str] = []
    with pytest.raises(clair_cli.ClairError, match="not writable"):
        clair_cli.merge(CLIENTS, f"out/{OUT}", progress=lambda *a: told.append(a[0]))
    assert told == [], "nothing was computed"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_write_protected_folder_is_replaced_whole(unprivileged: Path) -> None:
    files = {"adapter_model.safetensors": b"old", "c0/adapter_config.json": b"{}"}
    publish([Output(Path("m"), files)])
    os.chmod("m/c0", 0o500)
    os.chmod("m", 0o500)
    publish([Output(Path("m"), {"adapter_model.safetensors": b"new"}, force=True)])
    assert os.listdir() == ["m"] and os.listdir("m") == ["adapter_model.safetensors"]


@pytest.mark.parametrize("out", [".", "../here", "..", "sub/.."])
def test_the_folder_one_is_in(clients: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """Whoever stands in a folder that is replaced stands nowhere then."""
    Path("apart/here/sub").mkdir(parents=True)
    monkeypatch.chdir("apart/here")
    if not out.startswith("sub"):
        Path("sub").rmdir()
    for force in ([], ["--force"]):
        result = cohorts.clair("merge", "../../clients", "-o", out, *force)
        assert result.exit_code == 2
        assert f"output '{out}' is the working folder or holds it" in result.stderr


@covers(74)
@pytest.mark.parametrize("out", ["clients/m.safetensors", "clients/c0/m", "link/m.safetensors"])
def test_inside_the_input(clients: Path, row: int, out: str) -> None:
    Path("link").symlink_to("clients")
    before = cohorts.snapshot(CLIENTS)
    ran = merge(out=out)
    assert ran.code == ROWS[row].code and cohorts.snapshot(CLIENTS) == before
    assert f"'{out}'" in ran.words and "'clients'" in ran.words


@covers(75)
@pytest.mark.parametrize("kind", ["clients", "weights", "previous", "soft", "hard"])
def test_an_input(clients: Path, row: int, kind: str) -> None:
    cohorts.save_peft(Path("before"), GOOD["c0"])
    previous = Path("before/adapter_model.safetensors")
    Path("w.json").write_text('{"c0": 1, "c1": 1, "c2": 1}')
    Path("soft.safetensors").symlink_to(previous)
    os.link(previous, "hard.safetensors")
    out = {"clients": "clients", "weights": "w.json", "previous": str(previous)}
    path = out.get(kind, f"{kind}.safetensors")
    before = cohorts.snapshot(Path())
    given = previous if kind != "previous" else "before"
    ran = merge("--force", "--weights", "w.json", "--previous", given, out=path)
    assert ran.code == ROWS[row].code and cohorts.snapshot(Path()) == before
    assert f"'{path}'" in ran.words


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.name)


def a_device(path: Path) -> None:
    """A null device of our own. Never a real one: a rename would replace it."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("may not make a device node here")


def a_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("dear")


@covers(76)
@pytest.mark.parametrize(
    ("make", "words"),
    [(a_fifo, "a FIFO"), (a_socket, "a socket"), (a_device, "a character device")],
)  # fmt: skip
@pytest.mark.parametrize("name", [OUT, "merged"])
def test_what_is_no_file(
    clients: Path, row: int, make: Callable[[Path], None], words: str, name: str
) -> None:
    make(Path(name))
    before = os.lstat(name)
    ran = merge(out=name)
    assert ran.code == ROWS[row].code and words in ran.words and f"'{name}'" in ran.words
    forced = merge("--force", out=name)
    assert forced.code == ROWS[row].code, "no folder of ours, no file"
    assert (os.lstat(name).st_ino, os.lstat(name).st_mode) == (before.st_ino, before.st_mode)
    assert sorted(os.listdir()) == sorted(["clients", name])


@covers(71)
@pytest.mark.parametrize("name", [OUT, "merged"])
@pytest.mark.parametrize("make", [a_full_folder, Path.touch], ids=["folder", "file"])
def test_a_hint_at_force_is_one_that_helps(
    clients: Path, row: int, make: Callable[[Path], None], name: str
) -> None:
    make(Path(name))
    before = cohorts.snapshot(Path())
    words = merge(out=name).words
    codes = [merge(out=name).code, merge("--force", out=name).code]
    helps = make is Path.touch and name == OUT
    assert codes == [ROWS[row].code, 0 if helps else ROWS[row].code]
    assert ("--force" in words) == helps and f"output '{name}' exists" in words
    assert helps or cohorts.snapshot(Path()) == before


@covers(71)
def test_a_folder_of_ours_may_be_replaced(clients: Path, row: int) -> None:
    assert merge(out="merged").code == 0
    ran = merge(out="merged")
    assert ran.code == ROWS[row].code and "give --force" in ran.words
    assert merge("--force", out="merged").code == 0


@covers(71)
def test_a_read_only_folder_is_said_before_force_is(
    clients: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert merge().code == 0
    monkeypatch.setattr("clair_cli.output.targets.os.access", lambda *_: False)
    words = run("merge", "clients", "-o", OUT).words
    assert "not writable" in words and "--force" not in words


@covers(77)
def test_a_link(clients: Path, row: int) -> None:
    Path("real").mkdir()
    Path("real/target.safetensors").write_bytes(b"old")
    Path(OUT).symlink_to("real/target.safetensors")
    assert merge("--force").code == ROWS[row].code
    assert os.readlink(OUT) == "real/target.safetensors"
    assert cohorts.read_dense(Path("real/target.safetensors"))
    assert os.listdir("real") == ["target.safetensors"]


@covers(78)
@pytest.mark.parametrize("report", [OUT, f"./{OUT}", "clients/../m.safetensors"])
def test_report_and_adapter_at_one_path(clients: Path, row: int, report: str) -> None:
    ran = merge("--report", report)
    assert ran.code == ROWS[row].code and "-o and --report" in ran.words
    assert sorted(os.listdir()) == ["clients"]
    Path(OUT).write_bytes(b"old")
    ran = merge("--report", report)
    assert ran.code == ROWS[row].code, "wrong use counts before an output that exists"


@covers(79)
@pytest.mark.parametrize("at", ["report", "adapter"])
def test_a_full_disk(clients: Path, row: int, at: str) -> None:
    """A limit on the size of files stands for it: the same errors at the same calls."""
    for name in (OUT, REPORT):
        Path(name).write_bytes(b"old")
    size = 10_000 if at == "report" else 200_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        ran = merge("--force", "--rank", 1 if at == "report" else 320)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == ROWS[row].code
    assert f"output '{REPORT if at == 'report' else OUT}'" in ran.words
    stays(OUT)
    stays(REPORT)
    assert sorted(os.listdir()) == ["clients", REPORT, OUT]


@covers(77)
def test_a_dangling_link(clients: Path, row: int) -> None:
    Path(OUT).symlink_to("target.safetensors")
    assert merge().code == ROWS[row].code
    assert Path(OUT).is_symlink() and cohorts.read_dense(Path("target.safetensors"))


PUBLISHER = """
import os, sys
from pathlib import Path
from clair_cli.output.publish import Output, publish
letter, count = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for _ in range(count):
    publish([Output(Path("out.bin"), letter.encode() * 3_000_000, force=True)])
"""


def publisher(letter: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUBLISHER, letter, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole() -> str:
    data = Path("out.bin").read_bytes()
    assert len(data) == 3_000_000 and data.count(data[:1]) == len(data), "a torn file"
    return data[:1].decode()


@covers(85)
def test_a_killed_run_tears_no_file(work: Path, row: int) -> None:
    Path("out.bin").write_bytes(b"o" * 3_000_000)
    for k in range(3):
        child = publisher("n", 10_000)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        try:
            child.wait(timeout=0.05 + 0.03 * k)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        assert 128 - child.wait() == ROWS[row].code
        child.stdout.close()
        assert whole() in "on"


@covers(86)
def test_two_runs_to_one_output(work: Path, row: int) -> None:
    children = [publisher(letter, 30) for letter in "xy"]
    seen = set()
    while any(child.poll() is None for child in children):
        if Path("out.bin").exists():
            seen.add(whole())
    for child in children:
        assert child.stdout is not None
        child.stdout.close()
    assert [child.returncode for child in children] == [ROWS[row].code] * 2
    assert seen <= {"x", "y"} and whole() in "xy"
    assert os.listdir() == ["out.bin"]
