"""A file that is written while the rest of it is still being made. No torch here.

It lies beside its target under a temporary name, which `publish` replaces by the real one. A thread
of its own writes what has been made, reads it again and lets it go, and syncs the file: what is
made never stands in memory as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Full, Queue

from clair_cli.errors import OutputError
from clair_cli.formats.files import read_into
from clair_cli.output.targets import check_room, resolve
from clair_cli.text import quoted

CHUNK_BYTES = 4 * 2**20
_WAIT = 0.05  # seconds between two looks at whether a signal came
_SYNC_BYTES = 32 * 2**20
_WAITING = 8  # parts that may wait to be written: then whoever makes them waits

_MADE_HERE: set[str] = set()  # temporary names of this process

Part = bytes | memoryview


def temp_name(target: Path) -> Path:
    """A new temporary name beside a target: `.NAME.clair-PID-HEX.tmp`."""
    name = f"{_short(target)}.clair-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    _MADE_HERE.add(name)
    return target.parent / name


def temp_names(target: Path, names: Sequence[str]) -> list[tuple[str, int]]:
    """Those of `names` that another process made for a target, with its number."""
    pattern = re.compile(re.escape(_short(target)) + r"\.clair-(\d+)-[0-9a-f]{8}\.tmp")
    found = [(name, pattern.fullmatch(name)) for name in names]
    return [(name, int(m[1])) for name, m in found if m and name not in _MADE_HERE]


def _short(target: Path) -> str:
    return "." + os.fsdecode(os.fsencode(target.name)[:150])


def create(path: Path) -> int:
    """A new file's descriptor, to write and to read; 0666 less the umask."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def write_all(fd: int, parts: Sequence[Part], between: Callable[[], None]) -> None:
    """Put parts one after the other; `between` is called before each few MiB of them."""
    for view in _chunks(parts):
        between()
        while view:
            view = view[os.write(fd, view) :]


def check_written(fd: int, parts: Sequence[Part], name: str) -> None:
    """Compare a file with what was to be written.

    Raises:
        OutputError: it reads back differently.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    _compare(fd, parts, name)
    if os.read(fd, 1):
        raise _different(name)


def _compare(fd: int, parts: Sequence[Part], name: str) -> None:
    """The next bytes of a file with what was to be written."""
    found = bytearray()
    for view in _chunks(parts):
        if len(found) != len(view):
            found = bytearray(len(view))
        if read_into(fd, memoryview(found)) < len(view) or found != view:
            raise _different(name)


def _different(name: str) -> OutputError:
    return OutputError(f"{quoted(name)} reads back differently from what was written")


def _chunks(parts: Sequence[Part]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        yield from (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))


class Draft:
    """A file, most of which is on the disk before the rest is known.

    `begin`, `add` for each part, and at last `publish` with it as an output's content.

    Args:
        output: the file, or the folder that it will be in; a link is followed.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._target = output, resolve(output)
        self._writer: _Writer | None = None

    def begin(self, size: int) -> None:
        """Start, or start again.

        Args:
            size: of the whole file, in bytes.

        Raises:
            OutputError: see `check_room`.
        """
        self.discard()
        check_room(self._target.parent, size, self._output)
        self._writer = _Writer(temp_name(self._target))

    def add(self, part: Part) -> None:
        """The next part, whose bytes stay as they are."""
        self._begun.give(part)

    def sha256(self) -> str:
        """Of everything that was added, hex; nothing may be added then. What it was added for may
        have failed: `move_to` says so."""
        return self._begun.digest()

    def move_to(self, path: Path, mode: int | None, between: Callable[[], None]) -> None:
        """Finish the file and give it another name on the same file system.

        Args:
            mode: permissions, or None for the usual ones.
            between: called now and then while it is waited for; may raise.

        Raises:
            OSError, OutputError: it could not be written, or reads back differently.
        """
        writer = self._begun
        writer.finish(between)
        if mode is not None:
            os.chmod(writer.path, mode)
        os.rename(writer.path, path)
        self._writer = None

    @property
    def _begun(self) -> _Writer:
        if self._writer is None:
            raise ValueError("begin first")
        return self._writer

    def discard(self) -> None:
        """Remove what was written, unless it was moved."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None


class _StopError(Exception):
    """Nobody wants the file any more."""


class _Syncing:
    """Syncs of a file, beside what is being written to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def begin(self) -> None:
        """Another one, unless one is under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.wait()
        self._thread = threading.Thread(target=self._run, name="clair-sync", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """For the one under way.

        Raises:
            OSError: one failed.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._error = error


class _Writer:
    """The thread that writes a new file. One that can't still takes what it is given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._given: Queue[Part | None] = Queue(_WAITING)
        self._whole = hashlib.sha256()
        self._stopped = self._all_given = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="clair-draft", daemon=True)
        self._thread.start()

    def give(self, part: Part) -> None:
        self._given.put(part)
        self._whole.update(part)  # while the thread writes it

    def digest(self) -> str:
        """Of all that was given; no more will be."""
        self._given.put(None)
        return self._whole.hexdigest()

    def finish(self, between: Callable[[], None]) -> None:
        """Wait until everything given is written, synced and compared; see `Draft.move_to`."""
        self._given.put(None)
        while self._thread.is_alive():
            between()
            self._thread.join(_WAIT)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Remove the file. A thread that hangs in the system is not waited for."""
        self._stopped = True
        with contextlib.suppress(Full):  # then there is a part to wake it up
            self._given.put_nowait(None)
        self._thread.join(_WAIT)
        self._remove()

    def _run(self) -> None:
        try:
            fd = create(self.path)
            syncing = _Syncing(fd)
            try:
                synced = 0
                for part in self._parts():
                    start = os.lseek(fd, 0, os.SEEK_CUR)
                    write_all(fd, [part], self._check)
                    os.lseek(fd, start, os.SEEK_SET)
                    _compare(fd, [part], self.path.name)
                    if start - synced >= _SYNC_BYTES:  # else all of it is waited for in the end
                        syncing.begin()
                        synced = start
                syncing.wait()
                os.fsync(fd)
                if os.fstat(fd).st_size != os.lseek(fd, 0, os.SEEK_CUR):
                    raise _different(self.path.name)
            finally:
                with contextlib.suppress(OSError):
                    syncing.wait()
                os.close(fd)
        except _StopError:
            self._remove()  # if it was made after `stop` looked
        except BaseException as error:
            self._error = error
        finally:
            for _ in self._parts():
                pass

    def _parts(self) -> Iterator[Part]:
        """What is given, as long as more may come."""
        while not self._all_given:
            part = self._given.get()
            if part is None or self._stopped:
                self._all_given = True
                return
            yield part

    def _check(self) -> None:
        if self._stopped:
            raise _StopError

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
