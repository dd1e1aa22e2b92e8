"""How a run ends: the exit codes, and what each error or signal turns into.

Findings are 3 and never 1: Python itself, a missing library and a crash all exit with 1.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TextIO

import typer

from clair_cli.cli.paths import check_working_folder
from clair_cli.cli.streams import restore_line, write_err
from clair_cli.engine.own_process import may_raise
from clair_cli.errors import (
    ClairError,
    RejectedClient,
    UnsyncedWarning,
    is_out_of_files,
    is_out_of_memory,
)
from clair_cli.settings import Progress
from clair_cli.text import printable, without_secrets

EXIT_CODES = (
    ("0", "ok", "done, and --fail-on did not trip"),
    ("1", "internal", "a bug, a missing library, or out of memory"),
    ("2", "usage", "a bad option, value or path"),
    ("3", "findings", "--fail-on tripped (no adapter), or verify differs"),
    ("4", "refused", "no usable cohort, or one rejected and --strict"),
    ("5", "undetermined", "no honest verdict possible: report, no adapter"),
    ("6", "output", "the result could not be written"),
    ("129 130 143", "stopped", "by SIGHUP, Ctrl-C or SIGTERM, after cleaning up"),
)


class Stopped(BaseException):
    """A signal arrived; unwinding lets every `finally` remove its temporary files."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


@dataclass
class Run:
    """What the guard has to know about the command that it guards."""

    finished: bool = False  # the workflow returned: its outputs are in place
    so_far: str = "nothing written"

    def begin_stream(self) -> None:
        """The first bytes go to standard output."""
        self.so_far = "what went to standard output is not whole"


@contextmanager
def guarded() -> Iterator[Run]:
    """Turn whatever a command raises into words on stderr and `typer.Exit` with its code."""
    run = Run()
    try:
        check_working_folder()
        yield run
    except typer.Exit:
        raise
    except ClairError as error:
        write_err(error_text(error))
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, Stopped) as stop:
        raise _interrupted(run, stop) from None
    except Exception as error:
        if _arrived:  # what it raised was turned into something else on its way
            raise _interrupted(run, _arrived[0]) from None
        write_err(_internal_text(error))
        raise typer.Exit(1) from None


def _interrupted(run: Run, stop: BaseException) -> typer.Exit:
    """Say what a signal left behind."""
    placed = run.finished or getattr(stop, "published", False)
    what = "results are in place" if placed else run.so_far
    write_err(f"clair: interrupted, {what}\n")
    return typer.Exit(getattr(stop, "exit_code", 130))


_arrived: list[Stopped] = []
"""The signal that was answered, if any."""


def stoppable(progress: Progress) -> Progress:
    """The callback, which also raises `Stopped` again if a signal arrived and something swallowed
    what it raised: torch does so with all that goes wrong while it imports numpy."""

    def call(stage: str, done: int, total: int) -> None:
        if _arrived:
            raise _arrived[0]
        progress(stage, done, total)

    return call


def raise_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise `Stopped`, once: a second one can't break cleanup.

    Where nothing may be raised (while torch is imported), the handler ends the process.
    For a process that ends with the command; nothing puts the old handlers back.
    """
    _arrived.clear()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: not on Windows
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # One that is ignored stays so: that is how nohup works.
    ours = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]

    def stop(signum: int, _frame: FrameType | None) -> None:
        for number in ours:
            signal.signal(number, signal.SIG_IGN)
        if not may_raise():
            _stop_at_once(signum)
        _arrived.append(Stopped(signum))
        raise _arrived[0]

    for number in ours:
        signal.signal(number, stop)


def _stop_at_once(signum: int) -> None:
    """End the process where nothing may be raised: before anything was written."""
    try:
        restore_line()
        write_err("clair: interrupted, nothing written\n")
    finally:
        os._exit(128 + signum)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning of ours as a note, and another as Python does. Takes the place of
    `warnings.showwarning`."""
    if issubclass(category, UnsyncedWarning):
        write_err(f"note: {printable(str(message))}\n")
    else:
        write_err(warnings.formatwarning(message, category, filename, lineno))


def error_text(error: ClairError) -> str:
    """The error as the user sees it: one line that makes sense alone, then details.

    >>> print(error_text(ClairError("rank must be at least 1", hint="give --rank 8")), end="")
    clair: rank must be at least 1
      fix       give --rank 8
    """
    details = []
    if isinstance(error, RejectedClient):
        details += [("found", error.found), ("expected", error.expected), ("file", error.path)]
    details.append(("fix", error.hint))
    lines = [f"clair: {printable(without_secrets(error.message))}"]
    lines += [f"  {label:<9} {printable(without_secrets(text))}" for label, text in details if text]
    return "\n".join(lines) + "\n"


def _files_limit() -> str:
    """How many files this process may open, for a message."""
    try:
        import resource
    except ImportError:  # Windows, or no more files
        return ""
    return f": the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}"


def _internal_text(error: Exception) -> str:
    if is_out_of_memory(error):
        where = f": {printable(str(error))}" if type(error) is MemoryError and str(error) else ""
        text = f"clair: out of memory{where}\n"
        text += "  fix       fewer clients at once, fewer --threads, or --device cpu\n"
    elif is_out_of_files(error):
        text = f"clair: {os.strerror(errno.EMFILE).lower()}{_files_limit()}\n"
        text += "  fix       raise the limit, say by ulimit -n 1024\n"
    elif isinstance(error, ImportError):
        name = printable((error.name or "a library").partition(".")[0])
        text = f"clair: can't import {name}: {printable(str(error))}\n"
        known = ("torch", "numpy", "scipy", "safetensors", "rich")
        text += f"  fix       pip install {name}\n" if name in known else ""
    else:
        text = f"clair: internal error: {type(error).__name__}: {printable(str(error))}\n"
    if os.environ.get("CLAIR_DEBUG"):
        trace = "".join(traceback.format_exception(error))
        return "".join(f"{printable(line)}\n" for line in trace.splitlines()) + text
    return text + "  details   run again with CLAIR_DEBUG=1 for the traceback\n"
