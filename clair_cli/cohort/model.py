"""A cohort: the adapters that can be read, and who was rejected and why."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.adapters.adapter import Adapter
from clair_cli.errors import RejectedClient, shortened
from clair_cli.text import quoted


@dataclass(frozen=True)
class Rejection:
    """One client that can't be read or merged, with the reason.

    Attributes:
        name: the client's name.
        path: the file to blame as the user would write it, or "".
        message: one sentence that makes sense alone: client, module, what, numbers.
        module: the module to blame, or "".
        found: what was found, or "".
        expected: what was expected instead, or "".
        hint: one thing to do, or "".
        sha256: of the weights file if it was read to its end, else None.
    """

    name: str
    path: str
    message: str
    module: str = ""
    found: str = ""
    expected: str = ""
    hint: str = ""
    sha256: str | None = None


@dataclass(frozen=True)
class Cohort:
    """The clients of one run.

    Attributes:
        adapters: the readable ones, sorted by the bytes of their names.
        rejected: the others, sorted likewise.
        excluded: clients left out on request, not opened.
        ignored: entries of the folder that are no clients ("README.md", "logs/").
        notes: remarks on the folder as a whole.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...] = ()
    excluded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def rejection(error: RejectedClient, name: str, path: str, sha256: str | None = None) -> Rejection:
    """The listing of an error: its sentence gets the client's and the module's name in front."""
    where = f"client {quoted(name)}"
    if error.module:
        where += f", module {quoted(error.module)}"
    return Rejection(
        name=name,
        path=error.path or path,
        message=shortened(f"{where}: {error.message}"),
        module=error.module,
        found=error.found,
        expected=error.expected,
        hint=error.hint,
        sha256=sha256,
    )
