"""Adapters of one layout share its tables: what is kept, or sent, of each client is then little
more than the digests of its tensors.

A thousand clients with the same modules have the same names, shapes and places in their files.
"""

from __future__ import annotations

import hashlib
import pickle
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from clair_cli.adapters.adapter import Adapter
from clair_cli.formats.safetensors.reader import SafetensorsFile
from clair_cli.formats.safetensors.source import DIGEST_BYTES, TensorEntry

T = TypeVar("T")

_Place = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin, end


@dataclass(frozen=True)
class _Places:
    """What the tensor tables of several files have in common.

    Attributes:
        numbers: name of each tensor to its number, in the order of their bytes.
        places: of each tensor: dtype, shape, begin and end, as in `TensorEntry`.
    """

    numbers: Mapping[str, int]
    places: tuple[_Place, ...]


class TensorTable(Mapping[str, TensorEntry]):
    """The tensors of one file by name; each entry is made when it is asked for.

    Args:
        places: shared with files of the same layout.
        digests: of all tensors, one behind the other.
        exponents: of all tensors, see `TensorEntry`.
    """

    def __init__(self, places: _Places, digests: bytes, exponents: array[int]) -> None:
        self._places, self._digests, self._exponents = places, digests, exponents

    def __getitem__(self, name: str) -> TensorEntry:
        n = self._places.numbers[name]
        digest = self._digests[DIGEST_BYTES * n : DIGEST_BYTES * (n + 1)]
        return TensorEntry(name, *self._places.places[n], digest, exponent=self._exponents[n])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places.numbers)

    def __len__(self) -> int:
        return len(self._places.numbers)


class SharedTables:
    """Replaces equal parts of adapters by one object, so that they are in memory once, and in a
    pickle of several adapters too."""

    def __init__(self) -> None:
        self._found: dict[bytes, object] = {}

    def shared(self, adapter: Adapter) -> Adapter:
        """The adapter with modules, config and tensor tables that it shares with others."""
        source = adapter.source
        if isinstance(source, SafetensorsFile):
            # a mapping is all that anybody asks of them
            source = replace(source, tensors=self._table(source.tensors))  # type: ignore[arg-type]
        return replace(
            adapter,
            modules=self._one(dict(adapter.modules)),
            dense=self._one(dict(adapter.dense)),
            config=self._one(replace(adapter.config)),  # without what it has looked up
            source=source,
        )

    def _one(self, value: T) -> T:
        """The first value that was pickled to the same bytes."""
        key = hashlib.sha256(pickle.dumps(value)).digest()
        return self._found.setdefault(key, value)  # type: ignore[return-value]

    def _table(self, tensors: Mapping[str, TensorEntry]) -> Mapping[str, TensorEntry]:
        """The same entries as a `TensorTable`; as they are where one is not finite."""
        entries = list(tensors.values())
        if any(entry.non_finite for entry in entries):
            return tensors
        places = _Places(
            {entry.name: n for n, entry in enumerate(entries)},
            tuple((e.dtype, tuple(e.shape), e.begin, e.end) for e in entries),
        )
        digests = b"".join(entry.digest for entry in entries)
        return TensorTable(
            self._one(places), digests, array("h", (entry.exponent for entry in entries))
        )
