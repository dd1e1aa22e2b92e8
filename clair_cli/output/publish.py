"""The one way results reach the disk: whole, checked and synced, or not at all. No torch here.

All of a run's outputs are first written beside their targets under temporary names, read again and
synced. Only then are they renamed, in the order given: the report first, the adapter that it names
by hash last. A kill in between leaves the old adapter, and an adapter that no report names is known
to be half-done. Temporary names are `.NAME.clair-PID-HEX.tmp`; those of a killed run
are never removed (one may hold the only copy of what it replaced) but found by `leftovers`.

Objects of a store (output/objects.py) take part in the same way, as far as a store can.

Of several runs that write to one place, each renames all of its outputs while the others wait, so
that all that stands there in the end is of one run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clair_cli.errors import OutputError, UnsyncedWarning
from clair_cli.formats.safetensors.writer import Parts
from clair_cli.output.draft import Content, Draft, NewFile, check_readable, os_errors
from clair_cli.output.folder_lock import locked
from clair_cli.output.job import Job
from clair_cli.output.objects import ObjectsJob
from clair_cli.output.rename import put_new, swap
from clair_cli.output.signals import held_signals
from clair_cli.output.targets import check_existing, check_room, resolve
from clair_cli.output.temporary import temp_name
from clair_cli.store.address import Place, RemotePath
from clair_cli.text import quoted

_ATTEMPTS = 100
# How a system says that it can't open or sync folders at all.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
_NO_SYNC |= {errno.EACCES, errno.EPERM, errno.EISDIR}


@dataclass(frozen=True)
class Output:
    """One file or folder to publish.

    Attributes:
        path: a link is followed, so that its target is replaced and not the link; or an address.
        content: a file's bytes, parts, or draft (of this path), or a folder's files: relative
            POSIX path to one of these.
        force: replace an existing regular file (it keeps its mode), or a folder that clair wrote.
    """

    path: Place
    content: Content | Mapping[str, Content]
    force: bool = False


def publish(outputs: Sequence[Output], *, between: Callable[[], None] | None = None) -> None:
    """Write all outputs, then put them in place in the order given; all of them or none.

    Args:
        between: called when everything is written and synced and nothing is in place yet;
            what it raises undoes everything.

    Raises:
        UsageError: as `check_existing`.
        OutputError: exists without `force`, no room, or the system refuses. What was there is
            untouched. Or some of the outputs are in place, and others of another run, which
            wrote to the same place at the same time on a disk without locks.
        ValueError: a path in a folder's files is absolute, or has ".." or an empty part.
        Whatever is raised, a signal's exception too, has an attribute `published`: whether the
        outputs are in place.

    Warns:
        UnsyncedWarning: the outputs are in place, but the system could not sync a folder that they
            are in: a power cut might still undo the renames. That is no failure of the run.
    """
    placed = False
    jobs = [_job_of(output) for output in outputs]
    on_disk = [job for job in jobs if isinstance(job, _DiskJob)]
    try:
        for job in jobs:
            with os_errors(job.path):
                job.prepare()
        if between is not None:
            between()
        with locked({job.target.parent for job in on_disk}), held_signals():
            _put_in_place(jobs)
            placed = True
            try:
                _check_all_ours(jobs)
                _sync_parents(on_disk)
            finally:
                _clean_up(jobs, done=True)
    except BaseException as stop:  # a signal, perhaps, that came when all was in place
        with held_signals():
            _clean_up(jobs, done=placed)
        vars(stop)["published"] = placed
        raise


def _job_of(output: Output) -> Job:
    if isinstance(output.path, RemotePath):
        return ObjectsJob(output.path, output.content, force=output.force)
    return _DiskJob(output, output.path)


def _clean_up(jobs: Sequence[Job], *, done: bool) -> None:
    for job in jobs:
        job.clean_up(done=done)


class _DiskJob:
    """One output on its way: written under `temp`, later at `target`, the old one under `old`."""

    def __init__(self, output: Output, path: Path) -> None:
        self.output, self.path = output, path
        self.folder = isinstance(output.content, Mapping)
        for name in output.content if isinstance(output.content, Mapping) else ():
            parts = set(name.split("/"))
            if not name or PurePosixPath(name).is_absolute() or {"..", "", "."} & parts:
                raise ValueError(f"not a path inside the output folder: {name!r}")
        self.kind = "folder" if self.folder else "file"
        self.target = resolve(path)
        self.temp, self.aside = temp_name(self.target), temp_name(self.target)
        self.old: Path | None = None
        self.placed = False
        self._made: os.stat_result | None = None

    def prepare(self) -> None:
        """Write and sync everything under the temporary name."""
        content = self.output.content
        files = content if isinstance(content, Mapping) else {"": content}
        missing = [_parts(data) for data in files.values() if not isinstance(data, Draft)]
        size = sum(len(part) for parts in missing for part in parts)
        check_room(self.target.parent, size, self.path)
        if not isinstance(content, Mapping):
            _write(self.temp, content, self.target)
            check_readable(self.temp, self.target.name, content)
            return
        os.mkdir(self.temp)
        for name, data in content.items():
            file = self.temp / name
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, data, None)
            check_readable(file, file.name, data)
        for folder, _, _ in os.walk(self.temp):
            _sync_folder(Path(folder))

    def place(self) -> None:
        """Rename. Another run may put something there, or take it away, between look and rename:
        then look again."""
        path, target = self.path, self.target
        self._made = os.lstat(self.temp)
        for attempt in range(_ATTEMPTS):
            try:
                if os.path.lexists(target):
                    check_existing(path, target, force=self.output.force, kind=self.kind)
                    self.old = swap(self.temp, target, self.aside)
                else:
                    put_new(self.temp, target)
            except (FileExistsError, FileNotFoundError):
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                self.placed = True
                return

    def is_ours(self) -> bool:
        """Whether what was placed is still there, and nothing else in its stead."""
        try:
            return self._made is None or os.path.samestat(os.lstat(self.target), self._made)
        except OSError:
            return False

    def undo(self) -> None:
        """Put back what stood there."""
        if self.old is not None:
            self.temp = swap(self.old, self.target, temp_name(self.target))
            self.old = None
        else:
            os.rename(self.target, self.temp)
        self.placed = False

    def clean_up(self, *, done: bool) -> None:
        """Remove the new output if it was not placed, or else the old one if all went well."""
        path = self.temp if not self.placed else self.old if done else None
        if path is None:
            return
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _put_in_place(jobs: Sequence[Job]) -> None:
    """Rename all, in order, or none; signals wait."""
    try:
        for job in jobs:
            with os_errors(job.path):
                job.place()
    except BaseException:
        for job in reversed(jobs):
            if job.placed:
                job.undo()
        raise


def _check_all_ours(jobs: Sequence[Job]) -> None:
    """Raise if another run, which had no lock, replaced some of what was just put in place."""
    lost = [job for job in jobs if not job.is_ours()]
    if lost and len(lost) < len(jobs):
        kept = next(job for job in jobs if job not in lost)
        other, own = (quoted(job.path.as_posix()) for job in (lost[0], kept))
        raise OutputError(
            f"another run wrote to the same place at the same time: {other} is of that one, {own} "
            "of this",
            hint="run again",
        )


def _sync_parents(jobs: Sequence[_DiskJob]) -> None:
    """Make the renames last, or warn that they may not."""
    for folder in sorted({job.target.parent for job in jobs}):
        try:
            _sync_folder(folder)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            text = f"folder {quoted(folder.as_posix())} could not be synced: {reason}"
            warnings.warn(f"{text}; results are in place", UnsyncedWarning, stacklevel=3)


def _remove_folder(path: Path) -> None:
    """A folder of ours, even a write-protected one: what is removed was to be replaced."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _parts(content: bytes | Parts) -> Parts:
    return [content] if isinstance(content, bytes) else content


def _write(path: Path, content: Content, target: Path | None) -> None:
    """Write a file that will replace `target`, if there is one, and sync it."""
    if isinstance(content, Draft):
        content.move_to(path)
        return
    file = NewFile(path, target)
    try:
        for part in _parts(content):
            file.add(part)
        file.finish()
    finally:
        file.close()


def _sync_folder(folder: Path) -> None:
    """Sync a folder, if that can be done with one on this system.

    Raises:
        OSError: the disk fails.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
