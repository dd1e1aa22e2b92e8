"""Which objects are below an address, within bounds: keys come from strangers too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clair_cli.errors import InputRefused
from clair_cli.store.address import Parts, RemotePath, wrong_key
from clair_cli.store.errors import WrongKeyError, as_os_error
from clair_cli.store.objects import ObjectStore, entry_of, key_of
from clair_cli.store.tree import Entry, Tree
from clair_cli.text import quoted

MAX_KEYS_OF_ONE, MAX_KEYS = 5_000, 500_000
"""Objects below one client's folder, beyond which it is refused, and below the address."""

_CHUNK = 1_000  # keys of one request
_BEHIND = chr(ord("/") + 1)  # after a folder's name: behind all of its keys, before other names
_FILES = (".safetensors", ".json", ".csv", ".txt")


def tree_of(path: RemotePath) -> Tree:
    """What is at and below an address.

    Raises:
        OSError: the store can't be asked.
        UsageError: the library is missing.
        InputRefused: as `tree_below`.
    """
    store = ObjectStore(path)
    if not path.can_be_listed or path.name.lower().endswith(_FILES):
        entry = store.head(path.parts)
        if entry is not None or not path.can_be_listed:
            found = {} if entry is None else {path.parts: entry}
            return Tree(store, found, ask=store.head)
    tree = tree_below(store, path.parts)
    return tree if tree.is_folder(path.parts) else Tree(store, {}, ask=store.head)


def tree_below(store: ObjectStore, folder: Parts) -> Tree:
    """The objects below a folder.

    Raises:
        OSError: the store can't be asked.
        InputRefused: there are more than `MAX_KEYS`, or a key directly below the folder is one that
            no path may have.
    """
    found = _Found(store, folder)
    try:
        begin: str | None = ""
        while begin is not None:
            begin = found.take(_keys(store, folder, begin))
    except WrongKeyError:  # which lost the whole page: one folder after the other
        found = _Found(store, folder)
        _one_by_one(found)
    return found.tree()


def _one_by_one(found: _Found) -> None:
    """List each folder directly below on its own, so that a wrong key costs its own folder."""
    import obstore

    store, folder = found.store, found.folder
    shown = quoted(store.shown(folder))
    try:
        top = obstore.list_with_delimiter(store.connection, key_of(folder) or None)
    except Exception as error:
        raised = as_os_error(error, store.shown(folder))
        if not isinstance(raised, WrongKeyError):
            raise raised from None
        raise InputRefused(
            f"{shown} holds a key that no path may have: {raised.strerror}",
            hint="remove that object, or let each client write below its own folder only",
        ) from None
    found.take((meta["path"], meta) for meta in top["objects"])
    for inside in top["common_prefixes"]:
        parts = tuple(inside.rstrip("/").split("/"))
        try:
            found.take(_keys(store, parts, ""))
        except WrongKeyError as error:
            found.refuse(parts[len(folder)], str(error))


def _keys(store: ObjectStore, folder: Parts, begin: str) -> Iterator[tuple[str, Any]]:
    """Keys below a folder, from behind `begin` on, and what the store says of each."""
    import obstore

    try:
        chunks = obstore.list(
            store.connection, key_of(folder) or None, offset=begin or None, chunk_size=_CHUNK
        )
        for chunk in chunks:
            yield from ((meta["path"], meta) for meta in chunk)
    except Exception as error:
        raise as_os_error(error, store.shown(folder)) from None


@dataclass
class _Found:
    """Objects directly below a folder and in its folders, by name: few enough of each."""

    store: ObjectStore
    folder: Parts
    files: dict[str, dict[Parts, Entry]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    _seen: int = 0

    def take(self, keys: Iterator[tuple[str, Any]]) -> str | None:
        """Take keys in until one folder has too many of them.

        Returns:
            The key to go on behind, where that folder ends; None where there are no more.
        """
        depth = len(self.folder)
        for key, meta in keys:
            parts = tuple(key.split("/"))
            if parts[:depth] != self.folder or len(parts) == depth or parts[depth] in self.wrong:
                continue
            name = parts[depth]
            self._seen += 1
            if self._seen > MAX_KEYS:
                raise InputRefused(
                    f"{quoted(self.store.shown(self.folder))} holds more than {MAX_KEYS:,} objects",
                    hint="give the folder that holds the clients' folders, and no more",
                )
            own = self.files.setdefault(name, {})
            if why := wrong_key(parts):
                self.refuse(name, f"the key {quoted(key)} has {why}")
            elif len(own) == MAX_KEYS_OF_ONE:
                self.refuse(name, f"folder holds more than {MAX_KEYS_OF_ONE:,} objects")
                return key_of((*self.folder, name + _BEHIND))
            else:
                own[parts] = entry_of(meta, self.store.shown(parts))
        return None

    def refuse(self, name: str, why: str) -> None:
        """Say what is wrong with a folder, and forget its objects."""
        self.wrong[name] = why
        self.files.pop(name, None)

    def tree(self) -> Tree:
        files: dict[Parts, Entry] = {}
        for name, own in self.files.items():
            folders = {parts[:n] for parts in own for n in range(1, len(parts))}
            both = [parts for parts in own if parts in folders]
            for parts in both:  # what some tools write for an empty folder
                if own.pop(parts).size:
                    key = quoted("/".join(parts))
                    self.wrong[name] = f"{key} is an object, and a folder of others"
            if name not in self.wrong:
                files |= own
        return Tree(self.store, files, self.folder, self.wrong)
