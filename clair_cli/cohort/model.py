"""A cohort: the clients found in a folder, those that can be read, and who was rejected and why."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.adapters.adapter import Adapter
from clair_cli.errors import RejectedClient, shortened
from clair_cli.remark import Remark
from clair_cli.store.address import Place
from clair_cli.text import quoted


@dataclass(frozen=True)
class Candidate:
    """The files of one client, not opened yet.

    Attributes:
        entry: name of the client's file or folder in the cohort's folder.
        name: the client's name.
        shown: path of the weights file (or of the entry) as the user would write it.
        weights: the file to open; unused when `refusal` is set.
        root: real path of the cohort's folder, which no file of the client may be outside of; None
            for an adapter that is read alone.
        configs: where its own config may be, first choice first.
        shared: the cohort's config, for files that don't say their scale themselves, or None.
        notes: remarks for the report.
        refusal: why the client can't be read at all, or None.
    """

    entry: str
    name: str
    shown: str
    weights: Place
    configs: tuple[Place, ...] = ()
    shared: Place | None = None
    notes: tuple[Remark, ...] = ()
    refusal: RejectedClient | None = None
    root: Place | None = None


@dataclass(frozen=True)
class Listing:
    """What a cohort's folder holds.

    Attributes:
        candidates: the clients to read, sorted by the bytes of their names.
        excluded: names of clients left out on request, sorted likewise.
        ignored: entries of the folder that are no clients ("README.md", "logs/").
        notes: remarks on the folder as a whole.
        noted: those of `ignored` that one of the notes is on.
    """

    candidates: tuple[Candidate, ...]
    excluded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[Remark, ...] = ()
    noted: tuple[str, ...] = ()


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
        noted: those of `ignored` that one of the notes is on.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...] = ()
    excluded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[Remark, ...] = ()
    noted: tuple[str, ...] = ()


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
