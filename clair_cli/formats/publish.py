"""The one way results reach the disk: whole, checked and synced, or not at all. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from clair_cli.errors import OutputError, UsageError
from clair_cli.formats.regular_file import kind_of
from clair_cli.formats.strict_json import quoted

OWN_FILES = frozenset(("adapter_model.safetensors", "adapter_config.json", "report.json"))
OWN_FILES |= {"README.md"}
"""What a run of clair may write into a folder; `--force` replaces folders of these only."""


def is_one_file(output: Path) -> bool:
    """Whether a merged adapter is to be one file rather than a PEFT folder."""
    return output.name.endswith(".safetensors")


def check_target(
    path: Path, *, force: bool, kind: Literal["file", "folder"], inputs: Sequence[Path]
) -> None:
    """Refuse an output path that can't or shouldn't be written, before any work is done.

    Args:
        path: where the result shall be; a link stands for what it points to.
        force: an existing file, or a folder that clair wrote, may be replaced.
        kind: what will be written.
        inputs: files and folders read; nothing may be written to or into one.

    Raises:
        UsageError: no parent folder, a device, FIFO or socket, a file for a folder or a folder
            for a file, a folder that is not empty, or a path among the inputs.
        OutputError: exists without `force`, or the parent is not writable.
    """
    target = _resolve(path)
    if not target.parent.is_dir():
        raise UsageError(f"folder {quoted(path.parent.as_posix())} of the output does not exist")
    for given in inputs:
        _check_apart(path, target, given, kind)
    _check_existing(path, target, force=force, kind=kind)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"folder {quoted(target.parent.as_posix())} is not writable")


def publish_file(path: Path, data: bytes, *, force: bool) -> None:
    """Write one file: beside the target, synced and re-read, then renamed over it.

    Args:
        path: a link is followed, so that its target is replaced and not the link.
        force: replace an existing regular file; it keeps its mode.

    Raises:
        UsageError: as `check_target`.
        OutputError: exists without `force`, or the system refuses. What was there is untouched.
    """
    check_target(path, force=force, kind="file", inputs=())
    target = _resolve(path)
    temp = _temp_name(target)
    with _os_errors(path), _removing(temp):
        mode = stat.S_IMODE(os.stat(target).st_mode) if target.exists() else None
        _write(temp, data, mode)
        if not force and os.path.lexists(target):
            raise OutputError(f"output {quoted(path.as_posix())} appeared during the run")
        os.replace(temp, target)
        _sync_folder(target.parent)


def publish_folder(path: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """Write a folder of files: built beside the target, then renamed as a whole.

    Args:
        path: the folder; absent, empty, or with `force` one that clair wrote.
        files: relative POSIX path ("client/adapter_config.json") to contents.

    Raises:
        UsageError: as `check_target`.
        OutputError: the system refuses. What was there is untouched.
        ValueError: a path in `files` is absolute, or has ".." or an empty part.
    """
    for name in files:
        if not name or PurePosixPath(name).is_absolute() or {"..", "", "."} & set(name.split("/")):
            raise ValueError(f"not a path inside the output folder: {name!r}")
    check_target(path, force=force, kind="folder", inputs=())
    target = _resolve(path)
    temp = _temp_name(target)
    with _os_errors(path), _removing(temp):
        os.mkdir(temp)
        for name, data in files.items():
            file = temp / name
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, data, None)
        for folder, _, _ in os.walk(temp):
            _sync_folder(Path(folder))
        _swap(temp, target)
        _sync_folder(target.parent)


def _swap(temp: Path, target: Path) -> None:
    """Put the folder `temp` at `target`; an old folder there is removed once that worked."""
    if not os.path.lexists(target):
        os.rename(temp, target)
        return
    old = _temp_name(target)
    os.rename(target, old)
    try:
        os.rename(temp, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)


def _resolve(path: Path) -> Path:
    """The path with links followed; the last part may be absent."""
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise UsageError(f"output {quoted(path.as_posix())}: {error.strerror}") from None


def _check_apart(path: Path, target: Path, given: Path, kind: str) -> None:
    source = Path(os.path.realpath(given))
    shown, read = quoted(path.as_posix()), quoted(given.as_posix())
    if target == source or (target.exists() and source.exists() and target.samefile(source)):
        raise UsageError(f"output {shown} is the input {read}")
    if source in target.parents:
        raise UsageError(
            f"output {shown} lies inside the input {read}: the next run would read it as a client"
        )
    if kind == "folder" and target in source.parents:
        raise UsageError(f"output {shown} is a folder that holds the input {read}")


def _check_existing(path: Path, target: Path, *, force: bool, kind: str) -> None:
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
        raise UsageError(f"output {shown} is {kind_of(mode)}, but a {kind} is to be written")
    if kind == "file":
        if not force:
            raise OutputError(f"output {shown} exists", hint="give --force to replace it")
        return
    try:
        foreign = _foreign(target)
        empty = not os.listdir(target)
    except OSError as error:
        raise OutputError(f"output {shown} can't be listed: {error.strerror}") from None
    if not empty and not force:
        raise UsageError(f"output {shown} is a folder that is not empty", hint="give --force")
    if foreign:
        raise UsageError(f"output {shown} holds {quoted(foreign)}, which no run of clair wrote")


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


def _temp_name(target: Path) -> Path:
    name = os.fsdecode(os.fsencode(target.name)[:150])
    return target.parent / f".{name}.clair-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _write(path: Path, data: bytes, mode: int | None) -> None:
    """Create, fill, sync, read again and compare. `mode` None: 0666 less the umask."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags, 0o666)
    try:
        if mode is not None:
            os.chmod(path, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    with open(path, "rb") as file:
        written = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            written.update(chunk)
    if written.digest() != hashlib.sha256(data).digest():
        raise OutputError(f"{quoted(path.name)} reads back differently from what was written")


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems can't open or sync a folder
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _removing(temp: Path) -> Iterator[None]:
    """Remove `temp`, file or folder, if it is still there at the end, whatever happened."""
    try:
        yield
    finally:
        if temp.is_dir() and not temp.is_symlink():
            shutil.rmtree(temp, ignore_errors=True)
        else:
            temp.unlink(missing_ok=True)


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(f"output {quoted(path.as_posix())} not written: {reason}") from error
