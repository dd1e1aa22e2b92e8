"""Several outputs in one go: all in place or none; leftovers of killed runs; full disks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli.adapters.write import safetensors_bytes
from clair_cli.errors import OutputError, UsageError
from clair_cli.output import publish, rename, targets
from clair_cli.output.publish import Output
from clair_cli.output.targets import check_distinct, check_target, find_inside
from clair_cli.output.temporary import leftovers
from tests.cohorts import snapshot
from tests.tools import kill_publisher

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["exchange", "link"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "link":
        monkeypatch.setattr(rename, "_renameat2", lambda *_: False)


def pair(folder: Path, text: bytes) -> list[Output]:
    """A report and an adapter folder, as a merge publishes them."""
    files = {"adapter_model.safetensors": text, "adapter_config.json": text}
    return [Output(folder / "r.json", text, True), Output(folder / "m", files, True)]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("stage", ["prepare", "place"])
def test_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: None, old: bool, nth: int, stage: str
) -> None:
    if old:
        publish.publish(pair(tmp_path, b"old"))
    before, calls = snapshot(tmp_path), []
    real = getattr(publish._DiskJob, stage)

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == nth:
            raise OSError(5, "Input/output error")
        real(*args)

    monkeypatch.setattr(publish._DiskJob, stage, fail)
    with pytest.raises(OutputError, match="Input/output error"):
        publish.publish(pair(tmp_path, b"new"))
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == (["m", "r.json"] if old else [])
    monkeypatch.undo()
    publish.publish(pair(tmp_path, b"new"))
    assert set(snapshot(tmp_path).values()) == {b"new"}
    assert sorted(os.listdir(tmp_path)) == ["m", "r.json"]


def test_nothing_is_in_place_before_everything_is_written(tmp_path: Path) -> None:
    publish.publish(pair(tmp_path, b"old"))
    before = snapshot(tmp_path)
    seen: list[dict[str, bytes]] = []

    def look() -> None:
        seen.append(snapshot(tmp_path))
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"):
        publish.publish(pair(tmp_path, b"new"), between=look)
    assert {name: seen[0][name] for name in before} == before
    assert sum(data == b"new" for data in seen[0].values()) == 3
    assert all(".clair-" in name for name in set(seen[0]) - set(before))
    assert snapshot(tmp_path) == before


def test_an_old_one_that_cant_be_put_back_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails after the report is in place, and again when it is taken back."""
    publish.publish(pair(tmp_path, b"old"))

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    real = publish._DiskJob.place
    monkeypatch.setattr(
        publish._DiskJob, "place", lambda job: real(job) if job.kind == "file" else fail()
    )
    monkeypatch.setattr(publish._DiskJob, "undo", fail)
    with pytest.raises(OSError, match="Input/output error"):
        publish.publish(pair(tmp_path, b"new"))
    files = snapshot(tmp_path)
    assert files["m/adapter_model.safetensors"] == b"old"
    assert sorted(data for name, data in files.items() if "r.json" in name) == [b"new", b"old"]


def test_a_file_that_appears_during_the_run_is_kept(tmp_path: Path, renames: None) -> None:
    out = tmp_path / "out.bin"

    def other_run() -> None:
        out.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists"):
        publish.publish([Output(out, b"ours")], between=other_run)
    assert snapshot(tmp_path) == {"out.bin": b"theirs"}
    with pytest.raises(FileExistsError):
        rename.put_new(out, out)


@pytest.mark.parametrize("force", [False, True])
def test_another_run_puts_its_own_between_look_and_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    real, out = publish.put_new, tmp_path / "out.bin"

    def overtaken(source: Path, target: Path) -> None:
        target.write_bytes(b"theirs")
        real(source, target)

    monkeypatch.setattr(publish, "put_new", overtaken)
    if force:
        publish.publish([Output(out, b"ours", force=True)])
    else:
        with pytest.raises(OutputError, match="exists"):
            publish.publish([Output(out, b"ours")])
    assert out.read_bytes() == (b"ours" if force else b"theirs")
    assert os.listdir(tmp_path) == ["out.bin"]


def test_leftovers_of_a_killed_run_are_found_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with subprocess.Popen(["true"]) as gone:
        pass
    dead = f".m.safetensors.clair-{gone.pid}-0123abcd.tmp"
    live = f".m.safetensors.clair-{os.getppid()}-0123abcd.tmp"
    for name in (dead, live, ".m.safetensors.clair-x.tmp", f"x{dead}"):
        (tmp_path / name).write_bytes(b"half")
    assert leftovers(out) == [dead]
    publish.publish([Output(out, b"new")])
    assert leftovers(out) == [dead]
    # in a container every run may have the same number
    before = f".m.safetensors.clair-{os.getpid()}-0123abcd.tmp"
    (tmp_path / before).write_bytes(b"half")
    assert leftovers(out) == sorted([dead, before])

    def ours() -> None:
        assert leftovers(out) == sorted([dead, before])

    publish.publish([publish.Output(out, b"newer", True)], between=ours)
    assert (tmp_path / live).exists()
    assert leftovers(tmp_path / "absent" / "m") == []


# Targets


def test_two_outputs_in_one_place(tmp_path: Path) -> None:
    for a, b, words in (
        ("m", "m", "same path"),
        ("m", "x/../m", "same path"),
        ("m.safetensors", "M.SAFETENSORS", "same path"),
        ("m", "m/r.json", "inside"),
        ("caf\u00e9", "cafe\u0301", "same path"),
    ):
        with pytest.raises(UsageError, match=words):
            check_distinct("-o", tmp_path / a, "--report", tmp_path / b)
    check_distinct("-o", tmp_path / "m", "--report", tmp_path / "m.report.json")


def test_an_input_by_another_name_is_refused(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    (clients / "a").mkdir(parents=True)
    file = clients / "a" / "adapter_model.safetensors"
    file.write_bytes(b"x")
    os.link(file, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"clients/a/adapter_model.* hard link"):
        check_target(tmp_path / "m.safetensors", force=True, kind="file", inputs=[clients])
    assert find_inside(clients, os.stat(tmp_path / "m.safetensors")) == file
    (tmp_path / "alone").write_bytes(b"x")
    check_target(tmp_path / "alone", force=True, kind="file", inputs=[clients])


def test_only_so_many_files_are_looked_at_for_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order the disk gives them."""
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(b"x")
    for most in (3, 2):
        monkeypatch.setattr(targets, "_MAX_ENTRIES", most)
        assert sum(find_inside(tmp_path, os.stat(file)) == file for file in files) == most


def test_names_that_differ_only_in_case_where_the_disk_has_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: CLIENTS is the folder clients, and realpath keeps the letters given."""
    clients = tmp_path / "clients"
    clients.mkdir()
    real = os.stat

    def folded(path: Any, **kwargs: Any) -> os.stat_result:
        if not isinstance(path, int):
            path = str(path).replace("CLIENTS", "clients")
        return real(path, **kwargs)

    monkeypatch.setattr(os, "stat", folded)
    monkeypatch.setattr(Path, "is_dir", lambda self: folded(self).st_mode & 0o40000 != 0)
    with pytest.raises(UsageError, match="lies inside the input"):
        check_target(
            tmp_path / "CLIENTS" / "m.safetensors", force=True, kind="file", inputs=[clients]
        )


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "free_bytes", lambda _: 5000)
    with pytest.raises(OutputError, match=r"16,384 bytes, and 5,000 are free"):
        check_target(tmp_path / "m", force=False, kind="file", inputs=())
    monkeypatch.setattr(targets, "free_bytes", lambda _: 20_000)
    check_target(tmp_path / "m", force=False, kind="file", inputs=())
    with pytest.raises(OutputError, match=r"output '.*/m'.* 30,000 bytes, and 20,000 are free"):
        publish.publish([Output(tmp_path / "m", bytes(30_000))])
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(targets, "free_bytes", lambda _: None)  # a file system that can't tell
    publish.publish([Output(tmp_path / "m", bytes(30_000))])


FILL = """
import os, signal, sys
from pathlib import Path
from clair_cli.errors import OutputError
from clair_cli.output import targets
from clair_cli.output.publish import Output, publish
targets.free_bytes = lambda _: None  # the disk says nothing, so that writing itself fails
folder, size = Path(sys.argv[1]), int(sys.argv[2])
try:
    publish([Output(folder / "r.json", b"new", True), Output(folder / "m", bytes(size), True)])
except OutputError as error:
    print(error.message)
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def fill(folder: Path, size: int, **options: Any) -> str:
    """What the error says when `size` bytes are published beside a report."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(folder), str(size)],
        capture_output=True, text=True, timeout=20, env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True, **options,
    )  # fmt: skip
    return done.stdout


def test_a_file_size_limit_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    assert "not written: File too large" in fill(tmp_path, 200_000, preexec_fn=limit)
    assert snapshot(tmp_path) == {"m": b"old"}


SMALL_DISK = """
set -e
mount -t tmpfs -o size=256k none "$1"
printf old > "$1/m"
"$2" -c "$3" "$1" 1000000
ls -A "$1"; cat "$1/m"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True
    )
    if probe.returncode:
        pytest.skip("may not mount a small disk here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(tmp_path), sys.executable, FILL],
        capture_output=True, text=True, timeout=20, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, *rest = done.stdout.splitlines()
    assert "not written: No space left on device" in said
    assert rest == ["m", "old"]


@pytest.mark.parametrize(("name", "kills"), [("KILL", 50), ("TERM", 20), ("INT", 10), ("HUP", 10)])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")
def test_kills_at_random_moments_tear_nothing(name: str, kills: int) -> None:
    tool = [sys.executable, str(ROOT / "tests/tools/kill_publisher.py")]
    done = subprocess.run(
        [*tool, "--kills", str(kills), "--signal", name],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills} x SIG{name}: 0 torn")


@pytest.mark.skipif(not rename._libc(), reason="no call that exchanges two names here")
def test_a_kill_at_every_step_tears_nothing() -> None:
    tool = [sys.executable, str(ROOT / "tests/tools/kill_publisher.py"), "--steps"]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert " steps x SIGKILL: 0 torn" in done.stdout
    assert "report in place, adapter not: " in done.stdout


def test_the_tool_sees_what_is_torn(tmp_path: Path) -> None:
    """It would notice each of the ways in which an output can be half-done."""
    publish.publish([Output(tmp_path / "m.report.json", kill_publisher.report(2))])
    good = {"m.safetensors": kill_publisher.adapter(2)}
    good |= {f"merged/{name}": kill_publisher.adapter(2) for name in kill_publisher.FILES}
    (tmp_path / "merged").mkdir()
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    assert kill_publisher.look(tmp_path) == (2, "both in place")
    half = good["m.safetensors"][:-8]
    for name in good:
        for data in (half, kill_publisher.adapter(3)):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(AssertionError):
                kill_publisher.look(tmp_path)
        (tmp_path / name).write_bytes(good[name])
    (tmp_path / "merged" / kill_publisher.FILES[0]).unlink()
    with pytest.raises(AssertionError):
        kill_publisher.look(tmp_path)


READ_ONLY = """
set -e
mount -t tmpfs -o "$1" none "$2"
cd "$2"
"$3" -m clair_cli merge "$4" -o "$2/m.safetensors" || echo "code $?"
ls -A "$2"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
@pytest.mark.parametrize(
    ("options", "words"), [("ro", "is not writable"), ("size=8k", "it needs 16,384 bytes, and")]
)
def test_a_read_only_and_a_full_disk_are_refused_before_the_work(
    tmp_path: Path, options: str, words: str
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "clients").mkdir()  # empty: reading it would end with 4
    paths = [str(tmp_path / "disk"), sys.executable, str(tmp_path / "clients")]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", options, *paths],
        capture_output=True, text=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if "mount" in done.stderr and "clair:" not in done.stderr:
        pytest.skip("may not mount a small disk here")
    assert words in done.stderr
    assert done.stdout == "code 6\n"


def test_an_adapter_that_other_readers_refuse_is_not_published(tmp_path: Path) -> None:
    """What clair's own writer makes is opened by the safetensors library first."""
    whole = safetensors_bytes({"a": torch.zeros(2, 3)}, {})
    torn = whole[:8] + b'{"a":{"dtype":"F33"' + whole[27:]
    for name in ("m.safetensors", "\udcff.safetensors"):
        target = tmp_path / name
        with pytest.raises(OutputError, match="can't be read by safetensors"):
            publish.publish([Output(target, [torn])])
        assert os.listdir(tmp_path) == []
        publish.publish([Output(target, [whole])])
        assert target.read_bytes() == whole
        target.unlink()
    folder = tmp_path / "m"
    with pytest.raises(OutputError, match=r"'adapter_model.safetensors' can't be read"):
        publish.publish([Output(folder, {"adapter_model.safetensors": [torn]})])
    assert os.listdir(tmp_path) == []
