"""The errors `clair` raises, and the exit code of each.

    ClairError                    never raised itself
    ├── UsageError           2    a bad option, value or path: the caller's mistake
    ├── InputRefused         4    no usable cohort: nothing comparable is left
    ├── OutputError          6    the result could not be written
    ├── RoundStopped      3 4 5   what `raise_for_outcome` of a result raises
    └── RejectedClient       -    one client is unreadable or not comparable

`RejectedClient` never ends a run by itself: the reader catches it, the client is
listed as `rejected`, and the round goes on. A failed *judgement* is not an error at all
but a value (see `clair_cli.report.model.Outcome`).

Standard library only, so that a usage error never waits for `import torch`.
"""

from __future__ import annotations

import errno
import os
from typing import Any

MAX_MESSAGE = 2000  # characters; what strangers wrote is cut in each message before, too


def shortened(text: str) -> str:
    """`text`, or its beginning and how long it is.

    >>> shortened("x" * 2001)[1990:]
    'xxxxxxxxxx... (2,001 characters)'
    """
    if len(text) <= MAX_MESSAGE:
        return text
    return f"{text[:MAX_MESSAGE]}... ({len(text):,} characters)"


class ClairError(Exception):
    """Base of all errors a caller may want to catch.

    Attributes:
        message: one sentence that makes sense alone: who, where, what, with the numbers.
        hint: one thing to do about it, or "".
        exit_code: what the command line exits with (table in docs/how-it-writes.md).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(shortened(message))
        self.message = shortened(message)
        self.hint = shortened(hint)


class UsageError(ClairError):
    """The call itself is wrong: option, value, combination or path."""

    exit_code = 2


class InputRefused(ClairError):
    """No usable cohort in the input."""

    exit_code = 4


class OutputError(ClairError):
    """The output could not be written; what stood there before is untouched."""

    exit_code = 6


class RoundStopped(ClairError):
    """A round without the result that was asked for: its findings tripped `fail_on`, no verdict was
    possible, or there was no usable cohort.

    Attributes:
        report: of the round.
        exit_code: 3, 4 or 5, as the report has it.
    """

    def __init__(self, message: str, *, report: Any, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.report, self.exit_code = report, exit_code


class RejectedClient(ClairError):
    """One client's files can't be read, or can't be merged exactly.

    Attributes:
        client: the client's name ("" until the cohort reader adds it).
        module: the module, or "".
        path: the file, as the user gave it, or "".
        found: what was found, in a few words, or "".
        expected: what was expected instead, or "".
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        client: str = "",
        module: str = "",
        path: str = "",
        found: str = "",
        expected: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.client = client
        self.module = module
        self.path = path
        self.found = shortened(found)
        self.expected = shortened(expected)


class UnsyncedWarning(UserWarning):
    """Results are in place, but the system does not say that they would outlast a power cut."""


def is_out_of_files(error: Exception) -> bool:
    """Whether this process or the system may open no more files: no client is to blame for that."""
    if isinstance(error, ImportError):  # it carries the system's words only
        return os.strerror(errno.EMFILE) in str(error)
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on the CPU or torch on an accelerator could not allocate."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
