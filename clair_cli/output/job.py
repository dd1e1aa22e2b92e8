"""One output on its way to its place: what a disk and a store of objects each do in their way."""

from __future__ import annotations

from typing import Protocol

from clair_cli.store.address import Place


class Job(Protocol):
    """One file or folder to be written whole; every method but `clean_up` may raise `OSError`."""

    @property
    def path(self) -> Place:
        """Where it goes, as given."""
        ...

    @property
    def placed(self) -> bool:
        """Whether it is in its place, if only in part."""
        ...

    def prepare(self) -> None:
        """Write everything, as far as nobody sees it yet."""
        ...

    def place(self) -> None:
        """Put it in its place.

        Raises:
            OutputError, UsageError: as `check_existing`.
        """
        ...

    def is_ours(self) -> bool:
        """Whether what was placed is still there, and nothing else in its stead."""
        ...

    def undo(self) -> None:
        """Take it away again, and put back what stood there, as far as that can be had."""
        ...

    def clean_up(self, *, done: bool) -> None:
        """Remove what has a temporary name.

        Args:
            done: whether all went well, so that nothing will be put back.
        """
        ...
