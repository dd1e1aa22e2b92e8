"""Opening a stranger's file: no link followed, no waiting on a pipe, a size cap before reading.

A folder may become a link while it is read. So a client's files are opened beneath the cohort's
folder: each folder on the way is opened from its parent's descriptor, and none may be a link.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clair_cli.errors import RejectedClient, is_out_of_files
from clair_cli.store.address import Place, RemotePath
from clair_cli.store.errors import StoreError
from clair_cli.text import quoted

_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)

_BENEATH = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
# How a folder on the way is opened: without the right to read it, where the system allows that.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
_FOLDER |= getattr(os, "O_CLOEXEC", 0)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISLNK, "a symbolic link"),
)


def kind_of(mode: int) -> str:
    """The kind of file that `st_mode` gives, for messages: "a FIFO (named pipe)"."""
    for is_kind, text in _KINDS:
        if is_kind(mode):
            return text
    return "a regular file" if stat.S_ISREG(mode) else "not a regular file"


@contextmanager
def open_regular(
    path: Path, shown: str, root: Path | None = None
) -> Iterator[tuple[int, os.stat_result]]:
    """Yield `(descriptor, fstat)` of a regular file; closes it afterwards.

    Args:
        path: what to open. Its last component may not be a link.
        shown: the path as error objects carry it.
        root: a real path that `path` lies in; then no component below it may be a link.

    Raises:
        RejectedClient: the file is absent, a link, or not a regular file; or the system fails to
            open it, or fails while the descriptor is in use.
        OSError: no more files can be opened; see `is_out_of_files`.
    """
    name = os.path.basename(shown)
    try:
        if root is None or not _BENEATH:
            fd = os.open(path, _FLAGS)
        else:
            fd = open_beneath(root, path.relative_to(root).parts)
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise _open_failed(error, path, name, shown) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(status.st_mode, name, shown)
        yield fd, status
    except OSError as error:
        raise _unreadable(error, name, shown) from None
    finally:
        os.close(fd)


def open_beneath(root: Path, parts: Sequence[str]) -> int:
    """Open a file below a folder for reading.

    Args:
        root: the folder.
        parts: names of the folders on the way, and of the file.

    Returns:
        A descriptor, for the caller to close.

    Raises:
        RejectedClient: a part on the way is not, or no longer, a folder.
        OSError: the file is absent or a link, or can't be opened.
    """
    here = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            try:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                    raise RejectedClient(f"folder {quoted(part)} changed while reading") from None
                raise
            os.close(here)
            here = inner
        return os.open(parts[-1], _FLAGS, dir_fd=here)
    finally:
        os.close(here)


def _not_regular(mode: int, name: str, shown: str) -> RejectedClient:
    kind = kind_of(mode)
    return RejectedClient(
        f"{quoted(name)} is {kind}, not a regular file",
        path=shown,
        found=kind,
        expected="a regular file",
    )


def _open_failed(error: OSError, path: Path, name: str, shown: str) -> RejectedClient:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode) and error.errno not in (errno.EACCES, errno.EPERM):
        return _not_regular(mode, name, shown)
    return _unreadable(error, name, shown)


def _unreadable(error: OSError, name: str, shown: str) -> RejectedClient:
    own = error.errno is None or isinstance(error, StoreError)
    reason = str(error) if own else os.strerror(error.errno or 0)
    return RejectedClient(f"{quoted(name)} is unreadable: {reason}", path=shown, found=reason)


FAILURES = (RejectedClient, OSError, RecursionError, MemoryError)
"""Errors that reject the client being read, and never end the round of the others."""


def as_rejection(error: Exception, shown: str) -> RejectedClient:
    """One of `FAILURES` as a rejection.

    Args:
        error: raised while the client was read.
        shown: the client's path as error objects carry it, "" in memory.

    Raises:
        OSError: no more files can be opened, which is no client's fault.
    """
    if isinstance(error, RejectedClient):
        return error
    if isinstance(error, OSError):
        if is_out_of_files(error):
            raise error
        file = error.filename if isinstance(error.filename, (str, bytes)) else shown
        return _unreadable(error, os.path.basename(os.fsdecode(file)) or "client", shown)
    if isinstance(error, RecursionError):
        return RejectedClient("is nested too deeply to be read", path=shown)
    return RejectedClient(
        "reading it takes more memory than there is",
        path=shown,
        hint="leave it out with --exclude, or refuse such files sooner with --limit file=VALUE",
    )


def read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes from the current position, fewer only at the end of the file."""
    first = os.read(fd, count)
    if len(first) == count or not first:
        return first
    parts, missing = [first], count - len(first)
    while missing:
        part = os.read(fd, missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_into(fd: int, memory: memoryview) -> int:
    """Fill memory from a descriptor's current position.

    Returns:
        Bytes read: fewer than `len(memory)` only at the end of the file.
    """
    found = 0
    with io.FileIO(fd, closefd=False) as file:
        while found < len(memory) and (part := file.readinto(memory[found:])):
            found += part
    return found


def sniff(start: bytes) -> str:
    """The kind of a file that is no safetensors file, for messages; "" if it is not known.

    Args:
        start: the first 512 bytes, or fewer if there are no more.
    """
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer; run git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "an HTML page, not a download of the file"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive (as torch.save writes), not opened"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "a pickle, not opened"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive, not opened"
    if start[257:262] == b"ustar":
        return "a tar archive, not opened"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    return ""


def real_path(path: Place, root: Place) -> Place:
    """The path of a file or folder with every link followed; that of an object is as it is.

    Args:
        path: a file or folder, or a link to one.
        root: a real path, which the result must lie in.

    Raises:
        RejectedClient: a dangling link, a loop, or a link out of `root` (with link and target), or
            a folder on the way that has become such a link.
    """
    return path if isinstance(path, RemotePath) else _real_path(path, root)


def _real_path(path: Path, root: Place) -> Path:
    if not os.path.islink(path):
        real = Path(os.path.realpath(path.parent), path.name)
        if root not in real.parents:
            raise RejectedClient(f"folder {quoted(path.parent.name)} changed while reading")
        return real
    target = os.readlink(path)
    link = f"link {quoted(path.name)} to {quoted(target)}"
    try:
        real = Path(os.path.realpath(path, strict=True))
    except OSError as error:
        what = "is dangling" if isinstance(error, FileNotFoundError) else "can't be followed"
        raise RejectedClient(f"symbolic {link} {what}", found=link) from None
    if root not in real.parents:
        raise RejectedClient(
            f"symbolic {link} leaves the cohort's folder",
            found=link,
            expected="links inside the folder only",
        )
    return real
