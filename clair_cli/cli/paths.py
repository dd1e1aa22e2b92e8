"""Checks of the paths on the command line, done before torch is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clair_cli.errors import UsageError
from clair_cli.formats.filenames import no_folder_hint, not_here_hint
from clair_cli.store.address import Place, RemotePath, check_is_folder
from clair_cli.text import printable

# Options that are paths of what is read beside the clients.
_BESIDE = ("weights", "previous", "initial", "trust_adapter", "verdicts", "earlier")


def check_working_folder() -> None:
    """Refuse to work in a folder that was removed, from which torch's libraries don't even load.

    Raises:
        UsageError: it is gone.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working folder can't be used: {error.strerror}", hint="go to one that exists"
        ) from None


def paths_read(clients: Place, options: Mapping[str, Any]) -> list[Place]:
    """All that a command reads: the clients, and what is given beside them."""
    return [clients, *(options[name] for name in _BESIDE if options.get(name) is not None)]


def check_inputs(clients: Place, options: Mapping[str, Any]) -> None:
    """Refuse inputs that aren't there.

    Raises:
        UsageError: with the path, and a sibling of a similar name where there is one.
    """
    check_is_folder(clients)
    check_exists(clients, "CLIENTS")
    if isinstance(clients, Path) and not clients.is_dir():
        raise UsageError(
            f"CLIENTS {_shown(clients)} is a file, not a folder", hint=no_folder_hint(clients)
        )
    for name in _BESIDE:
        if options.get(name) is not None:
            check_exists(options[name], f"--{name.replace('_', '-')}")


def check_not_stdout(option: str, path: Place | None) -> None:
    """Refuse "-" where a command can't write to standard output.

    Raises:
        UsageError: naming the option.
    """
    if str(path) == "-":
        raise UsageError(f"{option} - : standard output takes one file", hint="give a path")


def check_exists(path: Place, what: str) -> None:
    """Refuse a path where nothing is. Of an address only the library for it is looked for: whether
    anything is there is asked once, by whoever reads it.

    Raises:
        UsageError: with the path, and a sibling of a similar name where there is one.
    """
    if isinstance(path, RemotePath):
        from clair_cli.store.connect import check_available

        check_available()
        return
    if os.path.exists(path):
        return
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {_shown(path.parent / close[0])}?" if close else ""
    hint = hint or not_here_hint(path)
    raise UsageError(f"{what} {_shown(path)} does not exist", hint=hint)


def _shown(path: Path) -> str:
    return f"'{printable(str(path))}'"
