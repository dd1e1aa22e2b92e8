"""For every test: no network, one torch thread once torch is there, the same examples each run."""

from __future__ import annotations

import compileall
import functools
import gc
import os
import re
import signal
import socket
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from _pytest.doctest import DoctestModule

import clair_cli

# Idle threads of torch and numpy sleep: to wait busily takes a core from the other worker. Read
# when those are imported, which happens after this file; no result depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

NO_NETWORK = str(Path(__file__).parent / "no_network")
collect_ignore = ["no_network"]  # nothing to test in there, and another file may have its name


# A third of a small run in this process would be typer making the commands anew.
if hasattr(typer.testing, "_get_command"):
    typer.testing._get_command = functools.cache(typer.testing._get_command)


# Kinds of tests that run by themselves, each with an option and, but for "programs", a marker of
# its name. The frameworks of servers want other versions of what we need, so an environment each.
SEPARATE = {
    "loaders": "load adapters with peft, diffusers or transformers",
    "browser": "open pages in chromium",
    "flower": "run rounds in Flower (extra flower)",
    "nvflare": "run rounds in NVFlare (extra nvflare)",
    "remote": "read and write objects of stores on this machine (extra remote)",
    "ray": "work on a Ray cluster of this machine (extra ray)",
    "programs": "are about the programs of benchmarks/ and fuzz/",
}
MARKERS = [kind for kind in SEPARATE if kind != "programs"]
TESTS = Path(__file__).parent
PROGRAMS = (TESTS / "benchmarks", TESTS / "test_fuzz_rounds.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    for kind, what in SEPARATE.items():
        parser.addoption(
            f"--{kind}", action="store_true", help=f"run the tests that {what}, and no others"
        )


def _chosen(config: pytest.Config) -> str:
    """The kind of tests to run, or "" for the usual ones."""
    return next((kind for kind in SEPARATE if config.getoption(f"--{kind}")), "")


def _of_programs(path: Path) -> bool:
    return any(path == place or place in path.parents for place in PROGRAMS)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of such tests import those libraries, for ten seconds and more in each process."""
    chosen = _chosen(config)
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return True if chosen and collection_path.suffix == ".py" else None
    text = collection_path.read_text(encoding="utf-8")
    if chosen in MARKERS:
        return None if f"pytest.mark.{chosen}" in text else True
    marks = "|".join(MARKERS)
    if re.search(rf"^pytestmark = .*pytest\.mark\.({marks})", text, re.MULTILINE):
        return True
    return None if _of_programs(collection_path) == (chosen == "programs") else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = _chosen(config)
    items[:] = [
        item
        for item in items
        if next((kind for kind in MARKERS if item.get_closest_marker(kind)), "")
        == ("" if chosen == "programs" else chosen)
    ]


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path,
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No search for doctests, through all that a test's file imports, where none is written."""
    found = yield
    if ">>>" in file_path.read_text(encoding="utf-8", errors="replace"):
        return found
    return [collector for collector in found if not isinstance(collector, DoctestModule)]


def pytest_collection_finish() -> None:
    """What is there now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Signals as an ordinary process has them: nohup and `&` leave some ignored, and a child of
    the tests inherits that. Bytecode as an installed package has it, and the tests' own: where
    Python may not keep any, each of a hundred children would make it again, and each run all of the
    tests' (a tenth of its time), and hypothesis, whose assertions pytest rewrites (3 s)."""
    sys.dont_write_bytecode = False
    from hypothesis import settings

    # The default: the same examples on every machine. HYPOTHESIS_PROFILE=long looks for new ones.
    settings.register_profile("ci", derandomize=True, deadline=None)
    settings.register_profile("long", deadline=None, max_examples=2000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(clair_cli.__file__).parent, quiet=2)
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Any attempt to reach another machine fails the test. Local pipes (AF_UNIX) may be used, and
    by tests of the browser, of stores and of Ray what listens on this machine.

    Processes that a test starts get a `sitecustomize` that forbids them the same.
    """
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([NO_NETWORK, *([path] if path else [])]))
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    look_up = socket.getaddrinfo
    marks = {mark.name for mark in request.node.iter_markers()}

    def allowed(host: object) -> bool:
        return bool(marks & {"browser", "remote", "ray"}) and host in _THIS_MACHINE

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not allowed(address[0]):
                raise AssertionError(f"a test tried to connect to {address}")
            return original(self, address)

        return call

    def no_lookup(*args: Any, **kwargs: Any) -> Any:
        if allowed(args[0]):
            return look_up(*args, **kwargs)
        raise AssertionError(f"a test tried to look up {args[0]!r}")

    monkeypatch.setattr(socket.socket, "connect", guarded(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Small matrices: a second thread costs more than it gives. Does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test can see tells a synced file from another, and a run syncs a dozen times.

    A closed descriptor is an error still. `tests/output` and processes sync as they should.
    """

    def seems_synced(descriptor: int) -> None:
        os.fstat(descriptor)

    monkeypatch.setattr(os, "fsync", seems_synced)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cohort's folder with one good client."""
    from tests.hostile import client  # it imports torch

    path = tmp_path / "clients"
    path.mkdir()
    client(path, "good")
    return path
