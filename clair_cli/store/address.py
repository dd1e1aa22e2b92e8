"""Addresses of objects, as places that are asked as paths are: s3://BUCKET/KEY and its kin.

An address is a name only. No credential is ever part of one: a user, a password and a query are
refused, and no message shows them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from clair_cli.errors import UsageError
from clair_cli.text import quoted, whole_characters

if TYPE_CHECKING:
    from clair_cli.store.objects import ObjectStore
    from clair_cli.store.tree import Entry, Tree

Parts = tuple[str, ...]
"""A key's parts between slashes."""

SCHEMES = {"s3": "bucket", "gs": "bucket", "az": "container", "https": "host", "http": "host"}
"""Schemes of addresses, and what follows each."""

FOLDERS = ("s3", "gs", "az")
"""Those whose objects can be listed and written."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(rf"({'|'.join(SCHEMES)}|hf):/[^/]")  # what `pathlib.Path` makes of one
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_THIS_MACHINE = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_KEY_BYTES = 1024  # S3's and Google's own limit


@dataclass(frozen=True)
class RemotePath:
    """An object, or the folder of all objects whose keys begin with it and a slash.

    It has the methods of `pathlib.Path` that reading needs, and no `__fspath__`: what would open it
    as a file of this machine fails. Questions about what is there are answered by its tree, without
    a request; `looked_up` gives an address one.

    Attributes:
        scheme: one of `SCHEMES`.
        host: the bucket, the container, or the host with its port.
        parts: of the key; () for the whole bucket.
        tree: what stood there when it was listed, or None.
    """

    scheme: str
    host: str
    parts: Parts = ()
    tree: Tree | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else self.host

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        return replace(self, parts=self.parts[:-1])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        return tuple(replace(self, parts=self.parts[:n]) for n in range(len(self.parts))[::-1])

    def __truediv__(self, name: str) -> RemotePath:
        return self.joinpath(name)

    def joinpath(self, *names: str) -> RemotePath:
        """The address below; "" adds nothing, as with paths."""
        more = (part for name in names for part in name.split("/") if part)
        return replace(self, parts=(*self.parts, *more))

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(self.stem + suffix)

    def as_posix(self) -> str:
        return f"{self.scheme}://{'/'.join((self.host, *self.parts))}"

    def __str__(self) -> str:
        return self.as_posix()

    def __lt__(self, other: RemotePath) -> bool:
        return self.as_posix() < other.as_posix()

    @property
    def can_be_listed(self) -> bool:
        """Whether its store has folders, and takes new objects."""
        return self.scheme in FOLDERS

    def __reduce__(self) -> tuple[object, ...]:
        """Of a place that is sent to another process only what stands there itself is sent along,
        and what reads it: with credentials of that process's own environment."""
        tree = None if self.tree is None else self.tree.only(self.parts)
        return type(self), (self.scheme, self.host, self.parts, tree)

    # What stood there

    @property
    def store(self) -> ObjectStore:
        """What reads it."""
        return self._seen().store

    def _seen(self) -> Tree:
        if self.tree is None:
            raise ValueError(f"{self} was not looked up")
        return self.tree

    def entry(self) -> Entry | None:
        """Size and ETag of the object; None where there is none."""
        return self._seen().entry(self.parts)

    def refusal(self) -> str:
        """What makes its keys such that it can't be read, or ""."""
        return self._seen().refusal(self.parts)

    def is_file(self) -> bool:
        return self.entry() is not None

    def is_dir(self) -> bool:
        return self._seen().is_folder(self.parts)

    def exists(self) -> bool:
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        for name in self._seen().names(self.parts):
            yield self / name

    def stat(self) -> os.stat_result:
        """Kind and size, as of a file.

        Raises:
            FileNotFoundError: nothing is there.
        """
        entry = self.entry()
        if entry is None:
            if self.is_dir():
                return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, entry.size, 0, 0, 0))


Place = Path | RemotePath
"""Where a file or a folder is."""


def place_of(given: str | os.PathLike[str] | RemotePath) -> Place:
    """The place that a text names: an address, or a path.

    Raises:
        UsageError: an address that holds a credential or a query, or that is none; the message
            shows neither.
    """
    if isinstance(given, RemotePath):
        return given
    text = given if isinstance(given, str) else os.fspath(given)
    match = _ADDRESS.fullmatch(text)
    if match is not None:
        found = _address(match[1].lower(), match[2])
        return Path(text) if found is None else found
    if _COLLAPSED.match(text) and not os.path.lexists(text):
        scheme, rest = text.split(":/", 1)
        _check_no_secret(scheme, rest)
        raise UsageError(
            f"{quoted(text)} is an address that lost a slash", hint="give it as a text, not a Path"
        )
    return Path(text)


def parse_path(given: Any) -> Place:
    """The place that an option's value names.

    Raises:
        UsageError: as `place_of`; or it is empty, and would mean the folder one is in.
        ValueError: no text and no path.
    """
    if isinstance(given, str) and not given:
        raise UsageError("the path is empty")
    if not isinstance(given, (str, os.PathLike, RemotePath)):
        raise ValueError
    return place_of(given)


def local_path(given: Any, what: str) -> Path:
    """A path on this machine.

    Args:
        what: the argument, for the message.

    Raises:
        UsageError: an address; or as `place_of`.
    """
    place = place_of(given)
    if isinstance(place, RemotePath):
        raise UsageError(
            f"{what} is the address {quoted(str(place))}, expected a path on this machine",
            hint="copy the file with the store's own tool, and give its path",
        )
    return place


def check_is_folder(place: Place) -> None:
    """Refuse an address of a server that has files and no folders.

    Raises:
        UsageError: saying what clients are read from.
    """
    if isinstance(place, RemotePath) and not place.can_be_listed:
        raise UsageError(
            f"{quoted(str(place))} is no folder: a web server does not list its files",
            hint="download the adapters, and give their folder; or give s3://, gs:// or az://",
        )


def _address(scheme: str, rest: str) -> RemotePath | None:
    """The address behind `SCHEME://`; None where the scheme is none of ours."""
    _check_no_secret(scheme, rest)
    if scheme == "hf":
        raise UsageError(
            "nothing is read from hf:// addresses",
            hint="hf download NAME --revision COMMIT --local-dir DIR, and give DIR",
        )
    if scheme not in SCHEMES:
        return None
    host, _, key = rest.partition("/")
    shape = _BUCKET if scheme in FOLDERS else _HOST
    if not shape.fullmatch(host):  # what it is stays unsaid: it may be half of a password
        raise UsageError(f"an address {scheme}://... names no {SCHEMES[scheme]}")
    if scheme == "http" and not _THIS_MACHINE.fullmatch(host):
        raise UsageError(
            f"{quoted(f'{scheme}://{host}/...')} is read without encryption",
            hint="give an https:// address; http:// is for this machine only",
        )
    key = key if scheme in FOLDERS else unquote(key)
    parts = key.removesuffix("/").split("/") if key else []
    path = RemotePath(scheme, host, tuple(parts))
    if why := wrong_key(tuple(parts)):
        raise UsageError(f"the address {quoted(str(path))} has {why}")
    return path


def _check_no_secret(scheme: str, rest: str) -> None:
    """Refuse a user and a password before the host, a query and a fragment, and show none."""
    host = re.split(r"[?#/]", rest, maxsplit=1)[0]
    hint = "give credentials where the cloud's own tools look for them: see docs/storage.md"
    if "@" in host:
        raise UsageError(f"an address {scheme}://... has a user before the host", hint=hint)
    if re.search("[?#]", rest):
        raise UsageError(
            f"an address {scheme}://... has a query or a fragment, as signed addresses do",
            hint=f"{hint}; or download the file, and give its path",
        )


def wrong_key(parts: Parts) -> str:
    """What makes a key one that no path may have, in a few words; "" for a good one."""
    if "" in parts:
        return "an empty part (//)"
    if "." in parts or ".." in parts:
        return "a part '.' or '..'"
    if any(_CONTROL.search(part) for part in parts):
        return "a control character"
    key = "/".join(parts)
    if whole_characters(key) != key:
        return "bytes that are no text"
    if len(key.encode()) > _MAX_KEY_BYTES:
        return f"more than {_MAX_KEY_BYTES:,} bytes"
    return ""
