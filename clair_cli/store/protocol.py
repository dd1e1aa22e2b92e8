"""What reading asks of a place where files are: a local folder, or a store of objects."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Stream(Protocol):
    """One file, read once from its begin to its end."""

    @property
    def size(self) -> int:
        """In bytes, when it was opened."""
        ...

    @property
    def stamp(self) -> object:
        """What tells this state of the file from every other."""
        ...

    def seek(self, position: int) -> None:
        """Go back to a position in the first 512 bytes; only while no more than these were read."""
        ...

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""
        ...

    def read_into(self, memory: memoryview) -> int:
        """Fill memory with the next bytes; returns how many, fewer only at the end."""
        ...

    def has_changed(self) -> bool:
        """Whether the file has more bytes than were read, or another size than at first."""
        ...


class Store(Protocol):
    """Files by place, read only.

    Every method raises `RejectedClient` where the file is absent, no file, or changed, and
    `OSError` where the system or the store fails.
    """

    def list(self, folder: Any) -> Sequence[str]:
        """Names in a folder."""
        ...

    def stream(self, file: Any, shown: str) -> AbstractContextManager[Stream]:
        """Open a file to read it whole.

        Args:
            shown: its name in error objects.
        """
        ...

    def range(self, file: Any, shown: str, stamp: Any, begin: int, memory: memoryview) -> bool:
        """Fill memory from a file that was read whole before; False where it is clearly another
        one now.

        Args:
            stamp: of the file then.
            begin: position of the first byte.
        """
        ...

    def is_unchanged(self, file: Any, stamp: Any) -> bool:
        """Whether bytes kept in memory are still those of the file, as far as can be told without
        reading it again."""
        ...
