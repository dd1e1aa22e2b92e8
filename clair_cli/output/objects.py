"""Results as objects of a store: each whole or not there, and of a folder the weights come last.

A folder of objects can't appear at once, as one on a disk does. So the report comes first and the
weights that it names by hash come last: an adapter counts only when its hash is the report's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clair_cli.errors import OutputError, UsageError
from clair_cli.formats.filenames import OWN_FILES, is_weights
from clair_cli.formats.stores import names_in
from clair_cli.output.draft import Content, Draft, NewFile, check_readable
from clair_cli.output.targets import check_target
from clair_cli.store.address import Place, RemotePath
from clair_cli.store.lookup import looked_up
from clair_cli.text import quoted

if TYPE_CHECKING:
    from clair_cli.store.upload import Upload


def check_output(
    path: Place, *, force: bool, kind: Literal["file", "folder"], inputs: Sequence[Place]
) -> None:
    """Refuse an output, on a disk or in a store; see `check_target`."""
    if isinstance(path, RemotePath):
        _check_objects(path, force=force, kind=kind, inputs=inputs)
    else:
        check_target(path, force=force, kind=kind, inputs=inputs)


def remove_place(place: Place) -> None:
    """Remove a file or an object; none is fine.

    Raises:
        OSError: the system or the store refuses.
    """
    if isinstance(place, RemotePath):
        from clair_cli.store.upload import remove, writable

        remove(writable(place), place.parts)
    else:
        place.unlink(missing_ok=True)


def _check_objects(path: RemotePath, *, force: bool, kind: str, inputs: Sequence[Place]) -> None:
    """Refuse an address that can't or shouldn't be written to; raises as `check_target`."""
    shown = quoted(str(path))
    if not path.can_be_listed or not path.parts:
        raise UsageError(
            f"output {shown} can't be written", hint="give s3://BUCKET/KEY, gs:// or az://, or a "
            "path on this machine",
        )  # fmt: skip
    from clair_cli.store.connect import check_available

    check_available()
    for given in (place for place in inputs if isinstance(place, RemotePath)):
        read = quoted(str(given))
        if path == given:
            raise UsageError(f"output {shown} is the input {read}")
        if given in path.parents:
            raise UsageError(
                f"output {shown} lies inside the input {read}: the next run would read it as a "
                "client"
            )
        if kind == "folder" and path in given.parents:
            raise UsageError(f"output {shown} is a folder that holds the input {read}")
    check_existing_objects(path, force=force, kind=kind)


def check_existing_objects(path: RemotePath, *, force: bool, kind: str) -> None:
    """Refuse what is at an address, unless it may be replaced; raises as `check_target`."""
    shown, found = quoted(str(path)), looked_up(path)
    if found.is_dir() if kind == "file" else found.is_file():
        what = "a folder" if kind == "file" else "a file"
        raise OutputError(
            f"output {shown} exists and is {what}, but a {kind} is to be written",
            hint="give another path",
        )
    if kind == "folder" and (foreign := _foreign(found) if found.is_dir() else ""):
        raise OutputError(
            f"output {shown} exists and holds {quoted(foreign)}, which no run of clair wrote",
            hint="give another path",
        )
    names = names_in(found) if found.is_dir() else []
    # a dot begins temporary names: this run's, and those that one which was killed left there
    if (found.is_file() or not all(name.startswith(".") for name in names)) and not force:
        raise OutputError(f"output {shown} exists", hint="give --force to replace it")


def _foreign(folder: RemotePath, prefix: str = "") -> str:
    """The first name that no run writes, or "" (sub-folders, one level, hold our own files)."""
    for name in names_in(folder):
        inside = folder / name
        if inside.is_dir() and not prefix:
            if found := _foreign(inside, f"{name}/"):
                return found
        elif not name.startswith(".") and (name not in OWN_FILES or inside.is_dir()):
            return prefix + name
    return ""


class ObjectsJob:
    """One output on its way to a store: a file, or a folder of them.

    Args:
        path: its address.
        content: as in `Output`.
        force: whether objects may be replaced.
    """

    def __init__(
        self, path: RemotePath, content: Content | Mapping[str, Content], *, force: bool
    ) -> None:
        self.path, self._force, self.placed = path, force, False
        files = content if isinstance(content, Mapping) else {"": content}
        self._files = dict(sorted(files.items(), key=lambda item: _turn(item[0])))
        self._folder = isinstance(content, Mapping)
        self._uploads: list[Upload] = []
        self._made = tempfile.TemporaryDirectory(prefix="clair-", ignore_cleanup_errors=True)

    def prepare(self) -> None:
        """Write everything to files of this machine, and upload what is large under other names."""
        from clair_cli.store.upload import Upload, writable

        store = writable(self.path)
        for number, (name, content) in enumerate(self._files.items()):
            key = self.path / name if name else self.path
            data = content if isinstance(content, bytes) else self._written(content, number)
            check_readable(data, key.name, content)
            upload = Upload(store, key.parts, data, replace=self._force)
            self._uploads.append(upload)
            upload.prepare()

    def place(self) -> None:
        """Let the objects appear one after the other, the weights last."""
        kind = "folder" if self._folder else "file"
        check_existing_objects(self.path, force=self._force, kind=kind)
        self.placed = True  # in part, from here on
        try:
            for upload in self._uploads:
                upload.place()
        except OSError as error:
            if not self._force or all(upload.tag is None for upload in self._uploads):
                raise
            raise OutputError(
                f"output {quoted(str(self.path))} was replaced in part: {error.strerror}",
                hint="run again; until then clair verify finds that it is not as its report says",
            ) from None

    def is_ours(self) -> bool:
        """Whether all objects are still those that were placed, as far as the store says."""
        try:
            return all(upload.is_ours() for upload in self._uploads)
        except OSError:
            return True

    def undo(self) -> None:
        """Remove the objects that are new; what was replaced is gone."""
        self.placed = False
        for upload in reversed(self._uploads):
            with contextlib.suppress(OSError):
                upload.undo()

    def clean_up(self, *, done: bool) -> None:
        """Remove what has a temporary name, here and in the store."""
        for upload in self._uploads:
            upload.clean_up()
        self._made.cleanup()

    def _written(self, content: Content, number: int) -> Path:
        """A file of this machine with that content."""
        if isinstance(content, Draft):
            return content.finish()
        assert not isinstance(content, bytes)
        file = NewFile(Path(self._made.name, str(number)))
        try:
            for part in content:
                file.add(part)
            file.finish()
        finally:
            file.close()
        return file.path


def _turn(name: str) -> tuple[int, str]:
    """Where a file of a folder stands in the order: the report, what is beside it, the weights."""
    last = os.path.basename(name)
    return (0 if name == "report.json" else 2 if is_weights(last) else 1, name)
