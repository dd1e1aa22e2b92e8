"""Files by place: a local folder and a store of objects, which are read the same way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import RejectedClient
from clair_cli.formats.files import open_regular, read_exactly, read_into
from clair_cli.store.address import Place, RemotePath
from clair_cli.store.protocol import Store, Stream
from clair_cli.text import quoted


@dataclass(frozen=True)
class LocalFolder:
    """Files of this machine, as a `Store` of paths.

    Attributes:
        root: as in `open_regular`.
    """

    root: Path | None = None

    def list(self, folder: Path) -> Sequence[str]:
        return os.listdir(folder)

    @contextmanager
    def stream(self, file: Path, shown: str) -> Iterator[LocalStream]:
        with open_regular(file, shown, self.root) as (fd, status):
            yield LocalStream(fd, status)

    def range(
        self, file: Path, shown: str, stamp: tuple[int, ...], begin: int, memory: memoryview
    ) -> bool:
        with open_regular(file, shown, self.root) as (fd, status):
            if status.st_size != size_in(stamp):
                return False
            os.lseek(fd, begin, os.SEEK_SET)
            read_into(fd, memory)
        return True

    def is_unchanged(self, file: Path, stamp: tuple[int, ...]) -> bool:
        try:
            return stamp_of(os.stat(file, follow_symlinks=False)) == stamp
        except OSError:
            return False


class LocalStream:
    """An open file, from its first byte on."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self._fd = fd
        self.size, self.stamp = status.st_size, stamp_of(status)

    def seek(self, position: int) -> None:
        os.lseek(self._fd, position, os.SEEK_SET)

    def read(self, count: int) -> bytes:
        return read_exactly(self._fd, count)

    def read_into(self, memory: memoryview) -> int:
        return read_into(self._fd, memory)

    def has_changed(self) -> bool:
        return bool(read_exactly(self._fd, 1)) or os.fstat(self._fd).st_size != self.size


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size and time of change: a file that was written to, or another one at the
    same path, has another stamp."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def size_in(stamp: tuple[int, ...]) -> int:
    return stamp[2]


def store_of(place: Place, root: Place | None = None) -> Store:
    """The store that reads a file.

    Args:
        root: as in `open_regular`, of a local file.
    """
    if isinstance(place, RemotePath):
        return place.store
    assert not isinstance(root, RemotePath)
    return LocalFolder(root)


def open_stream(
    place: Place, shown: str, root: Place | None = None
) -> AbstractContextManager[Stream]:
    """A file to be read once, from its begin to its end; closed afterwards.

    Args:
        place: the file; its last component may not be a link.
        shown: the path as error objects carry it.
        root: as in `open_regular`.

    Raises:
        RejectedClient, OSError: as `open_regular`.
    """
    return store_of(place, root).stream(place, shown)


def read_small(place: Place, shown: str, max_bytes: int, root: Place | None = None) -> bytes:
    """The whole of a small regular file; parameters as in `open_stream`.

    Raises:
        RejectedClient: not a readable regular file, or more than `max_bytes` bytes.
    """
    name = quoted(os.path.basename(shown))
    with open_stream(place, shown, root) as stream:
        if stream.size > max_bytes:
            raise RejectedClient(
                f"{name} has {stream.size:,} bytes, above the limit of {max_bytes:,}",
                path=shown,
                found=f"{stream.size:,} bytes",
                expected=f"at most {max_bytes:,} bytes",
            )
        data = stream.read(max_bytes + 1)
    if len(data) != stream.size:
        raise RejectedClient(f"{name} changed while reading", path=shown)
    return data


# Questions that `Path` has no method for, or another answer


def names_in(folder: Place) -> list[str]:
    """Names of a folder's entries, sorted by their bytes; OSError if it can't be listed."""
    return sorted(store_of(folder).list(folder), key=os.fsencode)


def is_there(place: Place) -> bool:
    """Whether anything is at a place, a link to nothing too."""
    return place.exists() if isinstance(place, RemotePath) else os.path.lexists(place)


def status_of(place: Place, *, follow: bool = False) -> os.stat_result:
    """Kind and size of what is at a place.

    Args:
        follow: whether a link counts as what it leads to.

    Raises:
        OSError: nothing is there, or the system fails.
    """
    if isinstance(place, RemotePath):
        return place.stat()
    return os.stat(place) if follow else os.lstat(place)


def followed(place: Place) -> Place:
    """The place with every link followed; objects have none."""
    return place if isinstance(place, RemotePath) else Path(os.path.realpath(place))
