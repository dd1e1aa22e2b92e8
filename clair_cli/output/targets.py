"""Which output paths may be written at all: refused here before any work is done. No torch."""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from clair_cli.errors import OutputError, UsageError
from clair_cli.formats.filenames import FILE_SUFFIXES, OWN_FILES, SUFFIX
from clair_cli.formats.files import kind_of
from clair_cli.store.address import Place, RemotePath
from clair_cli.text import quoted

LEAST_ROOM = 16 * 1024
"""Bytes without which not even a report fits: less is refused before the work begins."""

_MAX_ENTRIES = 100_000  # looked at for hard links to an input


def check_target(
    path: Path, *, force: bool, kind: Literal["file", "folder"], inputs: Sequence[Place]
) -> None:
    """Refuse an output path that can't or shouldn't be written, before any work is done.

    Args:
        path: where the result shall be; a link stands for what it points to.
        force: an existing file, or a folder that clair wrote, may be replaced.
        kind: what will be written.
        inputs: files and folders read; nothing may be written to or into one.

    Raises:
        UsageError: no parent folder, a device, FIFO or socket, or a path among the inputs (by
            whatever name: a link, a hard link, or letters of another case where the disk has no
            case), or a folder that one is in.
        OutputError: the parent is not writable, its disk is full, or something stands there: a
            file or a folder without `force`, one of them for the other, or a folder with files
            that no run of clair wrote.
    """
    _check_kind(path)
    target = resolve(path)
    if not target.parent.is_dir():
        raise UsageError(f"folder {quoted(path.parent.as_posix())} of the output does not exist")
    for given in (place for place in inputs if isinstance(place, Path)):
        _check_apart(path, target, given, kind)
    if kind == "folder":
        _check_not_here(path, target)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"folder {quoted(target.parent.as_posix())} is not writable")
    check_room(target.parent, LEAST_ROOM, path)
    check_existing(path, target, force=force, kind=kind)  # last: its hint should be the last one


def check_folder_name(path: Place, *, or_file: bool) -> None:
    """Refuse a folder to be whose name ends like a file's, before any work is done.

    Args:
        or_file: whether one file could be written instead.

    Raises:
        UsageError: with the name that was probably meant.
    """
    suffix = path.suffix.lower()
    if suffix not in FILE_SUFFIXES and not get_close_matches(suffix, [SUFFIX], cutoff=0.8):
        return
    meant = path.with_suffix(SUFFIX if or_file else "").as_posix()
    raise UsageError(
        f"output {quoted(path.as_posix())} is to be a folder, but its name ends like a file's",
        hint=f"did you mean {quoted(meant)}?",
    )


def check_distinct(first: str, one: Place, second: str, other: Place) -> None:
    """Refuse two outputs of one run that are one place, or of which one lies in the other.

    Args:
        first, second: how messages call them, such as "-o".

    Raises:
        UsageError: naming both.
    """
    a, b = _folded(one), _folded(other)
    shown = quoted(other.as_posix())
    if a == b:
        raise UsageError(f"{first} and {second} name the same path {shown}")
    if a in b.parents or b in a.parents:
        raise UsageError(
            f"{first} {quoted(one.as_posix())} and {second} {shown}: one lies inside the other",
            hint="give paths beside each other",
        )


def check_room(folder: Path, needed: int, path: Path) -> None:
    """Refuse a disk on which `needed` bytes clearly don't fit.

    Raises:
        OutputError: naming `path`, the bytes needed and the bytes free.
    """
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise OutputError(
            f"no room for output {quoted(path.as_posix())}: it needs {needed:,} bytes, and "
            f"{free:,} are free in {quoted(folder.as_posix())}",
            hint="free some space, or give an output on another disk",
        )


def free_bytes(folder: Path) -> int | None:
    """What this user may still write to the folder's disk, or None where nobody can tell."""
    try:
        status = os.statvfs(folder)
    except (AttributeError, OSError):  # Windows, or an odd file system
        return None
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize if status.f_blocks else None


def resolve(path: Path) -> Path:
    """The path with links followed; the last part may be absent."""
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise UsageError(f"output {quoted(path.as_posix())}: {error.strerror}") from None


def _folded(place: Place) -> Path:
    """The path as a disk without case, that normalises Unicode, would see it; of an address a path
    that no file has."""
    if isinstance(place, RemotePath):
        return Path("\0", place.scheme, place.host, *place.parts)
    path = resolve(place)
    return Path(unicodedata.normalize("NFC", str(path)).casefold())


def _check_kind(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:  # absent, or a link to nothing: then there is nothing to replace
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(
            f"output {quoted(path.as_posix())} is {kind_of(mode)}",
            hint="give a path of a new file; -o - writes to standard output",
        )


def _check_not_here(path: Path, target: Path) -> None:
    """A folder is replaced as a whole, and whoever stands in the old one stands nowhere then."""
    with contextlib.suppress(OSError):
        here = Path.cwd()
        if any(_same(folder, target) for folder in (here, *here.parents)):
            raise UsageError(
                f"output {quoted(path.as_posix())} is the working folder or holds it",
                hint="give another path, or run from elsewhere",
            )


def _check_apart(path: Path, target: Path, given: Path, kind: str) -> None:
    source = resolve(given)
    shown, read = quoted(path.as_posix()), quoted(given.as_posix())
    if _same(target, source):
        raise UsageError(f"output {shown} is the input {read}")
    if any(_same(parent, source) for parent in target.parents):
        raise UsageError(
            f"output {shown} lies inside the input {read}: the next run would read it as a client"
        )
    if kind == "folder" and any(_same(parent, target) for parent in source.parents):
        raise UsageError(f"output {shown} is a folder that holds the input {read}")
    inside = _hard_link(source, target)
    if inside is not None:
        name = quoted((given / inside.relative_to(source)).as_posix())
        raise UsageError(f"output {shown} is the input {name} by another name (a hard link)")


def _hard_link(folder: Path, path: Path) -> Path | None:
    """The file in `folder` that is the very file `path`, which lies elsewhere, or None."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return find_inside(folder, status) if status.st_nlink > 1 else None


def find_inside(given: Path, status: os.stat_result) -> Path | None:
    """The file that `status` is of, if it is `given` or lies two levels deep in it, or None."""
    if not stat.S_ISREG(status.st_mode):
        return None
    if not given.is_dir():
        return given if given.exists() and os.path.samestat(os.stat(given), status) else None
    for _, entry in zip(range(_MAX_ENTRIES), _files(given, 2), strict=False):
        try:
            if os.path.samestat(entry.stat(follow_symlinks=False), status):
                return Path(entry.path)
        except OSError:
            continue
    return None


def _files(folder: Path | str, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if depth:
                yield from _files(entry.path, depth - 1)
        else:
            yield entry


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one place, whatever their letters; absent ones go by name."""
    if one == other:
        return True
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return False


def check_existing(path: Path, target: Path, *, force: bool, kind: str) -> None:
    """Refuse what stands at `target`, unless it may be replaced; raises as `check_target`."""
    shown = quoted(path.as_posix())
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"output {shown}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"output {shown} is {kind_of(mode)}", hint="give a path of a new file")
    if stat.S_ISDIR(mode) != (kind == "folder"):
        raise OutputError(
            f"output {shown} exists and is {kind_of(mode)}, but a {kind} is to be written",
            hint="give another path",
        )
    if kind == "file":
        if not force:
            raise OutputError(f"output {shown} exists", hint="give --force to replace it")
        return
    try:
        foreign = _foreign(target)
        empty = not os.listdir(target)
    except OSError as error:
        raise OutputError(f"output {shown} can't be listed: {error.strerror}") from None
    if foreign:
        raise OutputError(
            f"output {shown} exists and holds {quoted(foreign)}, which no run of clair wrote",
            hint="give another path",
        )
    if not empty and not force:
        raise OutputError(f"output {shown} exists", hint="give --force to replace it")


def _foreign(folder: Path, prefix: str = "", depth: int = 0) -> str:
    """The first entry that no run writes, or "" (sub-folders, one level, hold OWN_FILES)."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False) and depth == 0:
                found = _foreign(Path(entry.path), f"{name}/", 1)
                if found:
                    return found
            elif entry.name not in OWN_FILES or not entry.is_file(follow_symlinks=False):
                return name
    return ""
