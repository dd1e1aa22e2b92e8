"""New files: written part by part, each part read again. No torch here.

A draft is one that is written while the rest of it is still being made, beside its target under a
temporary name that `publish` replaces by the real one: what is made never stands in memory as a
whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from clair_cli.errors import OutputError
from clair_cli.formats.filenames import is_weights
from clair_cli.formats.files import read_into
from clair_cli.formats.safetensors.writer import Parts
from clair_cli.output.targets import check_room, resolve
from clair_cli.output.temporary import temp_name
from clair_cli.store.address import Place
from clair_cli.store.errors import StoreError
from clair_cli.text import quoted

CHUNK_BYTES = 4 * 2**20

Part = bytes | memoryview


@contextlib.contextmanager
def os_errors(output: Place) -> Iterator[None]:
    """Turn what the system refuses into an OutputError that names the output."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError(f"output {quoted(output.as_posix())} appeared during the run") from error
    except OSError as error:
        own = error.errno is None or isinstance(error, StoreError)
        reason = str(error) if own else os.strerror(error.errno or 0)
        raise OutputError(f"output {quoted(output.as_posix())} not written: {reason}") from error


def check_readable(made: bytes | Path, name: str, content: Content) -> None:
    """Let the library that everybody else reads with open an adapter that was written.

    Args:
        made: the file.
        name: that it will have.
        content: what it was made of; plain bytes are no adapter.

    Raises:
        OutputError: it does not.
    """
    if isinstance(content, bytes) or not is_weights(name):
        return
    from safetensors import SafetensorError, safe_open

    assert isinstance(made, Path)
    try:
        with open(made, "rb") as file:
            # by its descriptor where there is such a path: its name may not be Unicode
            given = f"/dev/fd/{file.fileno()}" if os.path.isdir("/dev/fd") else os.fspath(made)
            with safe_open(given, framework="numpy") as opened:
                opened.keys()
    except SafetensorError as error:
        raise OutputError(f"{quoted(name)} can't be read by safetensors: {error}") from None


class NewFile:
    """A file that nothing stood in the place of, open until `finish` or `close`.

    Args:
        target: the file that it will replace, whose permissions it gets; 0666 less the umask where
            there is none.

    Raises:
        OSError: the system refuses; of every method.
    """

    def __init__(self, path: Path, target: Path | None = None) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.path, self._size = path, 0
        self._fd: int | None = os.open(path, flags, 0o666)
        if target is not None and target.is_file():
            mode = stat.S_IMODE(target.stat().st_mode)
            os.chmod(self._fd if os.chmod in os.supports_fd else path, mode)

    def add(self, part: Part) -> None:
        """Write the next bytes, and compare them with what the file has then.

        Raises:
            OutputError: it reads back differently.
        """
        view = memoryview(part)
        for start in range(0, len(view), CHUNK_BYTES):
            self._add(view[start : start + CHUNK_BYTES])

    def _add(self, chunk: memoryview) -> None:
        rest = chunk
        while rest:
            rest = rest[os.write(self._open, rest) :]
        os.lseek(self._open, self._size, os.SEEK_SET)
        found = bytearray(len(chunk))
        if read_into(self._open, memoryview(found)) < len(chunk) or found != chunk:
            raise self._different()
        self._size += len(chunk)

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OutputError: the file has another size than what was written.
        """
        os.fsync(self._open)
        if os.fstat(self._open).st_size != self._size:
            raise self._different()
        self.close()

    def close(self) -> None:
        """Let go of the file; it stays where it is."""
        fd, self._fd = self._fd, None  # forgotten first: a signal may come before the next line
        if fd is not None:
            os.close(fd)

    @property
    def _open(self) -> int:
        assert self._fd is not None, "the file is closed"
        return self._fd

    def _different(self) -> OutputError:
        shown = quoted(self.path.name)
        return OutputError(f"{shown} reads back differently from what was written")


class Draft:
    """A file, most of which is on the disk before the rest is known.

    `begin`, `add` for each part, and at last `publish` with it as an output's content.

    Args:
        output: the file, or the folder that it will be in; a link is followed.

    Raises:
        OutputError: the system refuses, or the file reads back differently; of every method.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._target = output, resolve(output)
        self._path: Path | None = None
        self._file: NewFile | None = None

    def begin(self, size: int) -> None:
        """Start, or start again.

        Args:
            size: of the whole file, in bytes.

        Raises:
            OutputError: see `check_room`.
        """
        self.discard()
        check_room(self._target.parent, size, self._output)
        self._hash = hashlib.sha256()
        self._path = temp_name(self._target)  # kept first: a signal may come at any moment
        with os_errors(self._output):
            self._file = NewFile(self._path, self._target)

    def add(self, part: Part) -> None:
        """The next part."""
        with os_errors(self._output):
            self._begun.add(part)
        self._hash.update(part)

    def sha256(self) -> str:
        """Of everything that was added, hex."""
        return self._hash.hexdigest()

    def move_to(self, path: Path) -> None:
        """Finish the file and give it another name on the same file system."""
        with os_errors(self._output):
            self._begun.finish()
            os.rename(self._begun.path, path)
        self._path = self._file = None

    def finish(self) -> Path:
        """Finish the file where it is, under its temporary name; `discard` removes it."""
        with os_errors(self._output):
            self._begun.finish()
        return self._begun.path

    @property
    def _begun(self) -> NewFile:
        if self._file is None:
            raise ValueError("begin first")
        return self._file

    def discard(self) -> None:
        """Remove what was written, unless it was moved."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._path = self._file = None


Content = bytes | Parts | Draft
"""What a new file is made of."""
