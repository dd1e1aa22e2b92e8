"""Rows about the process: streams, signals, terminals, memory, missing libraries, usage."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.bad_input.running import GOOD, OUT, REPORT, merge, run
from tests.bad_input.table import ROWS, covers
from tests.cli.test_process import FAKE, STOPPED, environment, start

CLIENTS = Path("clients")


@covers(80)
def test_binary_at_a_terminal(work: Path, row: int) -> None:
    CLIENTS.mkdir()
    ours, theirs = os.openpty()
    child = start(FAKE, "merge", "clients", "-o", "-", cwd=work, stdout=theirs)
    os.close(theirs)
    _, words = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == ROWS[row].code
    assert "standard output" in words and os.listdir() == ["clients"]


@covers(81)
@pytest.mark.parametrize("args", [["inspect", "clients"], ["inspect", "clients", "--json"]])
def test_a_reader_that_goes_away(work: Path, row: int, args: list[str]) -> None:
    CLIENTS.mkdir()
    read, write = os.pipe()
    os.close(read)
    child = start(FAKE, *args, cwd=work, stdout=write)
    os.close(write)
    words = child.communicate(timeout=60)[1]
    assert child.returncode == ROWS[row].code, "the verdict's code"
    assert "Broken" not in words and "Traceback" not in words


@covers(82)
@pytest.mark.parametrize("how", ["full", "closed"])
def test_nowhere_to_write_to(work: Path, row: int, how: str) -> None:
    if how == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    CLIENTS.mkdir()
    redirect = ">/dev/full" if how == "full" else ">&-"
    done = process_through(redirect, "inspect", "clients")
    assert done.returncode == ROWS[row].code
    assert "standard output" in done.stderr and len(done.stderr.splitlines()) == 1


def process_through(redirect: str, *args: str) -> subprocess.CompletedProcess[str]:
    from tests.cli.test_process import arguments

    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *arguments(FAKE, *args)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


@covers(83, 84)
def test_signals(work: Path, row: int) -> None:
    CLIENTS.mkdir()
    number = {83: signal.SIGINT, 84: signal.SIGTERM}[row]
    child = start(STOPPED, "merge", "clients", "-o", "out", cwd=work)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(number)
    time.sleep(0.01)
    child.send_signal(number)  # twice: an impatient user
    out, words = child.communicate(timeout=60)
    assert (child.returncode, out) == (ROWS[row].code, "")
    assert words == "clair: interrupted, nothing written\n"
    assert os.listdir() == ["clients"], "the temporary file is gone"


@covers(87)
@pytest.mark.parametrize("stage", ["comparing", "merging"])
def test_out_of_memory(work: Path, row: int, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    from clair_cli.engine import factors as tensors
    from clair_cli.workflow import merge_modules, weighted_mean

    cohorts.save(CLIENTS, GOOD)

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError if stage == "comparing" else RuntimeError("can't allocate memory: 9 GB")

    if stage == "comparing":
        monkeypatch.setattr(tensors, "stack_factors", fail)
    else:
        monkeypatch.setattr(merge_modules, "leading_svd", fail)
        monkeypatch.setattr(weighted_mean, "weighted_sum", fail)
    ran = merge()
    assert (ran.code, ran.report) == (ROWS[row].code, None)
    assert "out of memory" in ran.words and "module 'model.layers.0." in ran.words
    assert "fewer clients" in ran.words and "--device cpu" in ran.words
    assert os.listdir() == ["clients"]


BROKEN = {
    "missing": "sys.modules['torch'] = None",
    "broken": (
        "import importlib.abc\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise OSError('libtorch_cpu.so: file too short')\n"
        "sys.meta_path.insert(0, Finder())"
    ),
}


@covers(88)
@pytest.mark.parametrize(
    ("how", "args"),
    [
        ("missing", ["--help"]),
        ("broken", ["merge", "--help"]),
        *((how, ["merge", "clients", "-o", "m"]) for how in BROKEN),
    ],
)
def test_without_torch(work: Path, row: int, how: str, args: list[str]) -> None:
    CLIENTS.mkdir()
    code = (
        f"import sys; sys.argv[1:] = {args}\n{BROKEN[how]}\nimport clair_cli.cli.app as c\nc.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if "--help" in args:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert (done.returncode, done.stdout) == (ROWS[row].code, "")
    assert "torch" in done.stderr and "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr and os.listdir() == ["clients"]


@pytest.mark.parametrize("entry", ["main", "console"])
def test_without_numpy_there_is_no_traceback(work: Path, entry: str) -> None:
    """It is imported in the process that reads, or in this one."""
    cohorts.save(CLIENTS, GOOD)
    code = "import sys; sys.argv[1:] = ['inspect', 'clients']; sys.modules['numpy'] = None\n"
    code += f"import clair_cli.cli.app as c\nc.{entry}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install numpy" in done.stderr and "Traceback" not in done.stderr


def test_without_scipy_there_is_no_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts.save(CLIENTS, GOOD)
    monkeypatch.setitem(sys.modules, "scipy", None)
    for part in ("scipy.special", "scipy.sparse.csgraph"):
        monkeypatch.setitem(sys.modules, part, None)
    ran = merge()
    assert (ran.code, ran.report) == (1, None) and "pip install scipy" in ran.words
    assert os.listdir() == ["clients"]


@covers(89)
@pytest.mark.parametrize(
    ("args", "words"),
    [(("--rnak", "8"), "--rank"), (("--ouput", "x"), "--output"), (("--stric",), "--strict")],
)
def test_a_misspelt_option(work: Path, row: int, args: tuple[str, ...], words: str) -> None:
    cohorts.save(CLIENTS, GOOD)
    ran = merge(*args)
    assert (ran.code, ran.report) == (ROWS[row].code, None)
    assert f"no such option: {args[0]}" in ran.words and words in ran.words


@covers(90)
@pytest.mark.parametrize(
    "value", ["200%", "100.1%", "-1", "nan", "", "inf", "0", "0%", "1.5", "%", "reject"]
)
def test_a_threshold_that_is_none(work: Path, row: int, value: str) -> None:
    cohorts.save(CLIENTS, GOOD)
    for command in (("merge", "clients", "-o", OUT), ("inspect", "clients")):
        ran = run(*command, f"--fail-on={value}")
        assert (ran.code, ran.report) == (ROWS[row].code, None)
        for allowed in ("never", "suspicious", "contaminated"):
            assert allowed in ran.words


LONG = "hospital-of-the-northern-region-ward-7-second-floor-to-the-left"


@covers(94)
@pytest.mark.parametrize(
    "env", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"},
            {"COLUMNS": "20"}, {}]
)  # fmt: skip
def test_plain_outputs(
    work: Path, row: int, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    cohorts.save(CLIENTS, {**GOOD, LONG: cohorts.with_nan(cohorts.unrelated())})
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    plain = merge()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ran = merge("--force")
    assert ran.code == ROWS[row].code and ran.words == plain.words
    assert any(line.startswith(f"{LONG}  rejected") for line in ran.words.splitlines())


# What the shell or the system gives the process


def in_shell(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """`clair ARGS`, run by a shell after a script."""
    command = ["sh", "-c", f'{script}; exec "$@"', "sh", sys.executable, "-m", "clair_cli", *args]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(os.name != "posix", reason="folders of POSIX")
@pytest.mark.parametrize("absolute", [True, False])
def test_a_working_folder_that_was_removed(work: Path, absolute: bool) -> None:
    cohorts.save(CLIENTS, GOOD)
    clients = str(work / "clients") if absolute else "clients"
    out = str(work / OUT) if absolute else OUT
    commands = (("merge", clients, "-o", out), ("inspect", clients), ("verify", out))
    for args in commands[: 1 if absolute else None]:
        done = in_shell("mkdir gone && cd gone && rmdir ../gone", *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("clair: the working folder can't be used: No such file")
        assert len(done.stderr.splitlines()) == 2
    if absolute:
        assert in_shell("mkdir gone && cd gone && rmdir ../gone", "--version").returncode == 0


@contextlib.contextmanager
def limited(name: str, value: int) -> Iterator[None]:
    """A limit of the system on this process."""
    resource = pytest.importorskip("resource")
    which = getattr(resource, name)
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def test_no_more_files_can_be_opened(work: Path) -> None:
    cohorts.save(CLIENTS, GOOD)
    assert merge().code == 0  # nothing is left to be imported
    free = os.open(CLIENTS, os.O_RDONLY)
    os.close(free)
    with limited("RLIMIT_NOFILE", free + 1):
        done = cohorts.clair("merge", "clients", "-o", "other.safetensors")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"clair: too many open files: the limit is {free + 1}\n  fix ")
    assert sorted(os.listdir()) == sorted(["clients", OUT, REPORT])


@pytest.mark.parametrize("what", ["open", "listdir"])
def test_no_client_is_rejected_where_files_run_out(
    work: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    cohorts.save(CLIENTS, GOOD)
    real = getattr(os, what)

    def fails(path: Any, *args: Any, **kwargs: Any) -> Any:
        if "c1" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, what, fails)
    ran = merge()
    assert (ran.code, ran.report) == (1, None)
    assert "too many open files" in ran.words and "rejected" not in ran.words


def test_a_limit_on_the_size_of_files(work: Path) -> None:
    cohorts.save(CLIENTS, GOOD)
    with limited("RLIMIT_FSIZE", 1024):
        done = cohorts.clair("merge", "clients", "-o", OUT, "-q")
    assert (done.exit_code, done.stdout) == (6, "")
    assert "not written: File too large" in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir() == ["clients"]
