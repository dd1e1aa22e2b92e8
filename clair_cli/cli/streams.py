"""The two streams of the command line: what they can show, and writing to them for certain.

A reader that went away (`| head`) is no failure. A full device is: exit code 6.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from clair_cli.errors import OutputError, UsageError
from clair_cli.output.targets import find_inside
from clair_cli.store.address import Place

if TYPE_CHECKING:
    from clair_cli.cli.render import View

WIDEST = 120  # longer lines are hard to read
_USUAL = 80  # columns of a terminal that does not say


class PipeSafe(io.TextIOWrapper):
    """A text stream that takes a closed pipe in silence: what follows goes nowhere."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            discard(self)


class ClosedStream(io.TextIOBase):
    """Stands for a stdout that was closed before the start: nothing can be shown."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def write(self, text: str) -> int:
        raise OutputError("standard output is closed, so the result can't be shown")


class BinaryOut:
    """Standard output for bytes. A reader that goes away is no failure.

    Args:
        begin: called before the first byte.

    Raises:
        OutputError: when written to: stdout is full.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin: Callable[[], None] | None = begin

    def write(self, data: bytes) -> int:
        if self._begin is not None:
            self._begin()
            self._begin = None
        stream = cast(TextIO, sys.stdout)
        try:
            stream.buffer.write(data)
            stream.buffer.flush()
        except BrokenPipeError:
            discard(stream)
        except OSError as error:
            discard(stream)
            raise OutputError(_cant_write(error)) from None
        return len(data)


def check_binary_stdout(inputs: Sequence[Place], reports: Sequence[Place] = ()) -> None:
    """Refuse a stdout that an adapter must not go to, before any work is done.

    Raises:
        UsageError: a terminal, a file that is one of `inputs` or lies in one, or one of `reports`.
        OutputError: closed, or not writable.
    """
    stream = sys.stdout
    if stream is None or isinstance(stream, ClosedStream):
        raise OutputError("standard output is closed, so the adapter can't be written to it")
    if stream.isatty():
        raise UsageError(
            "-o - : standard output is a terminal", hint="redirect it: -o - > merged.safetensors"
        )
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream in memory
        return
    for given in (place for place in inputs if isinstance(place, Path)):
        inside = find_inside(given, status)
        if inside is not None:
            raise UsageError(f"-o - : standard output goes to {str(inside)!r}, an input")
    for report in (place for place in reports if isinstance(place, Path)):
        if find_inside(report, status) is not None:
            raise UsageError(f"-o - : standard output goes to {str(report)!r}, the report's place")


def prepare_streams() -> None:
    """Make stdout and stderr fit for hostile names, odd locales and closed pipes.

    The numbers 0, 1 and 2 are taken where they are free, lest a result's file get one of them
    and what a library writes to stderr end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = cast(TextIO, ClosedStream())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            safe = PipeSafe(
                _whole_writes(stream.detach()),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, safe)
            setattr(sys, f"__{name}__", safe)  # help asks it for the terminal's width


def _whole_writes(binary: Any) -> Any:
    """A stream under which no write is cut short in silence.

    With PYTHONUNBUFFERED a stream is the file itself, which takes what fits and says how much;
    a pipe that somebody made non-blocking, as some CI runners do, takes what fits and fails.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # in memory, or on Windows
        os.set_blocking(binary.fileno(), True)
    return io.BufferedWriter(binary) if isinstance(binary, io.RawIOBase) else binary


def discard(stream: TextIO) -> None:
    """Send the stream's buffered and further output nowhere, so that closing it can't fail."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # a stream in memory
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def write_out(text: str) -> None:
    """Write to stdout, all of it.

    Raises:
        OutputError: stdout is closed or full (a closed pipe is neither).
    """
    stream: TextIO = sys.stdout or cast(TextIO, ClosedStream())
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        discard(stream)
    except OSError as error:
        discard(stream)
        raise OutputError(_cant_write(error)) from None


def _cant_write(error: OSError) -> str:
    return f"can't write to standard output: {error.strerror}"


def write_err(text: str) -> None:
    """Write words to stderr. If that fails there is nobody left to tell."""
    stream: TextIO | None = sys.stderr
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        discard(stream)


def restore_line() -> None:
    """Take a progress bar off the terminal, and show its cursor again."""
    if is_terminal(sys.stderr) and takes_ansi():
        write_err("\r\x1b[K\x1b[?25h")


_asked = "auto"  # what --color says


def ask_for_colour(choice: str) -> None:
    """Let `--color` say whether colours are used: "always", "never", or "auto" as the environment
    and the stream have it."""
    global _asked
    _asked = choice


def view_of(stream: TextIO | None) -> View:
    """What `stream` can show, and in colour or not."""
    from clair_cli.cli.render import View

    encoding = (getattr(stream, "encoding", None) or "").lower()
    width = min(columns_of(stream), WIDEST) if is_terminal(stream) else None
    return View(width=width, colour=_in_colour(stream), unicode=encoding.startswith("utf"))


def _in_colour(stream: TextIO | None) -> bool:
    """`--color` counts first, then NO_COLOR, then FORCE_COLOR, then what the stream is."""
    if _asked != "auto":
        return _asked == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("FORCE_COLOR", "0") not in ("", "0") or (
        is_terminal(stream) and takes_ansi()
    )


def columns_of(stream: TextIO | None) -> int:
    """The columns of a terminal: what COLUMNS says, else what the terminal itself says."""
    said = os.environ.get("COLUMNS", "")
    if said.isascii() and said.isdigit() and int(said[:9]) > 0:
        return int(said[:9])
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL if stream else _USUAL
    except (OSError, ValueError):  # in memory
        return _USUAL


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def takes_ansi() -> bool:
    """Whether a terminal may be steered, as a progress bar does. NO_COLOR, `--color never` and
    TERM=dumb mean no ANSI at all."""
    return (
        _asked != "never"
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") != "dumb"
    )
