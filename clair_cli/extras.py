"""Libraries that a plain installation lacks, and the extra of clair-cli that brings them."""

from __future__ import annotations

from importlib.util import find_spec

from clair_cli.errors import UsageError


def check_installed(what: str, library: str, extra: str) -> None:
    """Refuse work whose library is not installed; to be called before any work.

    Args:
        what: what needs it, for the message, as in "a picture".
        library: the name by which it is imported.
        extra: the extra that brings it.

    Raises:
        UsageError: with the command that installs it.
    """
    if find_spec(library) is None:
        raise UsageError(
            f"{what} needs the library {library}, which is not installed",
            hint=f"pip install 'clair-cli[{extra}]'",
        )
