"""What a store answers, in our words: its own may hold addresses, keys and signatures."""

from __future__ import annotations

import errno
import os
import re

from clair_cli.text import quoted

MISSING = (
    "an address needs the library obstore, which is not installed",
    "pip install 'clair-cli[remote]'",
)
"""What is said where the extra is not installed, and the command that installs it."""


class StoreError(OSError):
    """A store that fails, in one sentence."""

    def __init__(self, text: str, shown: str = "") -> None:
        super().__init__(errno.EIO, text, shown)

    def __str__(self) -> str:
        return str(self.strerror)


class ChangedError(StoreError):
    """The object is another one than was first seen."""


class WrongKeyError(StoreError):
    """A listing has a key that no path may have, and the library gives up on it."""


_KINDS = {
    "NotFoundError": (FileNotFoundError, errno.ENOENT),
    "PermissionDeniedError": (PermissionError, errno.EACCES),
    "UnauthenticatedError": (PermissionError, errno.EACCES),
    "AlreadyExistsError": (FileExistsError, errno.EEXIST),
}
_CHANGED = ("PreconditionError", "NotModifiedError")
_STATUS = re.compile(r"[A-Za-z0-9 -]* status code: (\d{3})\b")
_SIGNS = {
    "RangeNotSupported": "the server gives no ranges of a file",
    "InvalidCertificate": "the server's certificate is not one that this machine trusts",
    "kind: Timeout": "the store does not answer in time",
    "TimedOut": "the store does not answer in time",
}


def as_os_error(error: Exception, shown: str) -> OSError:
    """An error of obstore as one of the system's, with nothing in it that the store said but the
    number of its status.

    Args:
        shown: the address.
    """
    name = type(error).__name__
    if isinstance(error, StoreError):
        return error
    if isinstance(error, FileNotFoundError):
        name = "NotFoundError"
    if name == "InvalidPathError":
        return WrongKeyError(_of_wrong_key(str(error)), shown)
    if name in _KINDS:
        kind, number = _KINDS[name]
        return kind(number, os.strerror(number), shown)
    if name in _CHANGED:
        return ChangedError("changed while reading", shown)
    text = str(error)
    asked, _, answered = text.partition(" - ")  # what was asked of whom, and what came of it
    if re.search(r"169\.254\.|metadata|token|credential", asked.partition("\n")[0], re.IGNORECASE):
        return StoreError("no credentials for it are found", shown)
    if status := _STATUS.match(answered):
        return _of_status(int(status[1]), shown)
    for sign, said in _SIGNS.items():
        if sign in text:
            return StoreError(said, shown)
    return StoreError("the store can't be reached, or does not answer as one", shown)


def _of_status(number: int, shown: str) -> OSError:
    """An answer by the number of its status."""
    if number in (401, 403):
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), shown)
    if number == 404:
        return StoreError("there is no such bucket", shown)
    if number == 412:
        return ChangedError("changed while reading", shown)
    return StoreError(f"the store answers with status {number}", shown)


def _of_wrong_key(text: str) -> str:
    """What is wrong with a key, of the library's words for it; the key itself is a stranger's."""
    key = re.search('Path "([^\n"]*)"', text)
    shown = f"the key {quoted(key[1])}" if key else "a key"
    if "empty path segment" in text:
        return f"{shown} has an empty part (//)"
    if 'illegal: "."' in text or 'illegal: ".."' in text:
        return f"{shown} has a part '.' or '..'"
    return f"{shown} has a control character"
