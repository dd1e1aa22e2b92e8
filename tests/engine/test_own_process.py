"""What a process that runs one command of clair does for itself, and a library does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


def started(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, without torch."""
    start = "import os, signal, sys\nfrom clair_cli.engine import own_process\n"
    return subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
        env={k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"} | env,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "given", "found"), [(True, {}, "1"), (True, {"OPENBLAS_NUM_THREADS": "2"}, "2"),
                                  (False, {}, "None")]
)  # fmt: skip
def test_only_a_process_of_our_own_is_settled(
    claim: bool, given: dict[str, str], found: str
) -> None:
    code = "own_process.claim()\n" if claim else ""
    done = started(code + "print(os.environ.get('OPENBLAS_NUM_THREADS'))", **given)
    assert (done.stdout.strip(), done.stderr) == (found, "")


IMPORT = """
    from clair_cli.cli import exits
    if {ours}:
        own_process.claim()
    exits.raise_on_signals()
    try:
        with own_process.importing():
            try:
                os.kill(os.getpid(), signal.{name})
                for _ in range(1000): pass
            except BaseException:
                os.abort()  # what C++ does with it
            print("imported", flush=True)
    except exits.Stopped as stop:
        print("raised", stop.exit_code)
"""


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)], ids=str
)
def test_a_signal_during_the_import_ends_a_process_of_our_own(name: str, code: int) -> None:
    done = started(IMPORT.format(ours=True, name=name))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "clair: interrupted, nothing written\n"


def test_a_signal_during_the_import_waits_in_a_process_of_others() -> None:
    done = started(IMPORT.format(ours=False, name="SIGTERM"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["imported", "raised", "143"]
