"""Checks of the paths on the command line, done before torch is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

from clair_cli.errors import OutputError, UsageError
from clair_cli.output.targets import check_distinct, check_target
from clair_cli.report.encode import records_nothing
from clair_cli.text import printable


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


def check_inputs(clients: Path, *, weights: Path | None, previous: Path | None) -> None:
    """Refuse inputs that aren't there.

    Raises:
        UsageError: with the path, and a sibling of a similar name where there is one.
    """
    check_exists(clients, "CLIENTS")
    if not clients.is_dir():
        raise UsageError(
            f"CLIENTS {_shown(clients)} is a file, not a folder",
            hint="put the clients' adapters into one folder and give that folder",
        )
    if weights is not None:
        check_exists(weights, "--weights")
    if previous is not None:
        check_exists(previous, "--previous")


def check_outputs(
    targets: Mapping[str, tuple[Path | None, str]],
    *,
    force: bool,
    inputs: Sequence[Path | None],
) -> None:
    """Refuse outputs that can't or shouldn't be written.

    Args:
        targets: option to (path or None, "file" or "folder").
        force: whether an existing output may be replaced.
        inputs: what is read; None is passed over.

    Raises:
        UsageError, OutputError: as `check_target`; or two options name one path. Wrong use of
            any of them counts before an output that can't be written.
    """
    seen: dict[str, Path] = {}
    refused: OutputError | None = None
    given = [path for path in inputs if path is not None]
    for option, (path, kind) in targets.items():
        if path is None:
            continue
        if str(path) == "-":
            raise UsageError(f"{option} - : standard output takes one file", hint="give a path")
        for other, there in seen.items():
            check_distinct(other, there, option, path)
        seen[option] = path
        literal = cast(Literal["file", "folder"], kind)
        may_replace = force or (option == "--report" and records_nothing(path))
        try:
            check_target(path, force=may_replace, kind=literal, inputs=given)
        except OutputError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def check_exists(path: Path, what: str) -> None:
    """Refuse a path where nothing is.

    Raises:
        UsageError: with the path, and a sibling of a similar name where there is one.
    """
    if os.path.exists(path):
        return
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {_shown(path.parent / close[0])}?" if close else ""
    raise UsageError(f"{what} {_shown(path)} does not exist", hint=hint)


def _shown(path: Path) -> str:
    return f"'{printable(str(path))}'"
