"""What stood at and below an address when it was listed: names, sizes and ETags of one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clair_cli.store.address import Parts

if TYPE_CHECKING:
    from clair_cli.store.objects import ObjectStore


@dataclass(frozen=True)
class Entry:
    """One object.

    Attributes:
        size: in bytes.
        tag: its ETag, by which later reads are pinned to these very bytes.
    """

    size: int
    tag: str


class Tree:
    """The objects below an address, as folders and files.

    Args:
        store: reads them.
        files: by the key's parts.
        folder: the key's parts of the address that was listed.
        wrong: what is wrong with a folder or file directly below it, by its name.
        ask: looks for an object that `files` has not; None where the listing has all.
    """

    def __init__(
        self,
        store: ObjectStore,
        files: Mapping[Parts, Entry],
        folder: Parts = (),
        wrong: Mapping[str, str] | None = None,
        ask: Callable[[Parts], Entry | None] | None = None,
    ) -> None:
        self.store = store
        self._wrong = {(*folder, name): why for name, why in (wrong or {}).items()}
        self._files: dict[Parts, Entry | None] = dict(files)
        self._ask = ask
        self._names: dict[Parts, dict[str, None]] = {}
        for parts in (*files, *self._wrong):
            for depth in range(len(parts)):
                self._names.setdefault(parts[:depth], {})[parts[depth]] = None

    def only(self, parts: Parts) -> Tree:
        """What is known of one file; of a folder no more than that it is one."""
        found = self._files.get(parts)
        if found is None and self.is_folder(parts):
            inside = (key for key in self._files if key[: len(parts)] == parts)
            key = next(inside, None)
            found, parts = (None, parts) if key is None else (self._files[key], key)
        return Tree(self.store, {} if found is None else {parts: found})

    def entry(self, parts: Parts) -> Entry | None:
        """The object of that key; None where there is none."""
        if parts not in self._files and self._ask is not None:
            self._files[parts] = self._ask(parts)
        return self._files.get(parts)

    def refusal(self, parts: Parts) -> str:
        """What is wrong with a file or folder, or ""."""
        return self._wrong.get(parts, "")

    def is_folder(self, parts: Parts) -> bool:
        return parts in self._names and not self.entry(parts)

    def names(self, parts: Parts) -> Sequence[str]:
        """Names directly in a folder."""
        return list(self._names.get(parts, ()))
