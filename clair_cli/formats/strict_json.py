"""JSON from strangers: one parser for headers, configs and weights files.

The standard parser lets the last of two equal keys win, accepts NaN, and answers deep nesting
or very long numbers with errors of other kinds. Two readers could then see two different files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clair_cli.text import quoted

MAX_INTEGER_CHARS = 20  # 2**64 has 20 digits
MAX_FLOAT_CHARS = 64
MAX_DEPTH = 32  # of lists and objects inside one another; honest files have five

_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def parse_strict(data: bytes, what: str, max_bytes: int, *, errors: str = "strict") -> Any:
    r"""Parse one JSON document, refusing whatever two parsers could read differently.

    Args:
        data: the document, UTF-8 without a byte order mark.
        what: how error messages call it, for example "adapter_config.json".
        max_bytes: the largest accepted `len(data)`.
        errors: "surrogateescape" takes other bytes in strings too, as `os.fsdecode` has them, raw
            or written as `\udcNN`.

    Returns:
        What `json.loads` gives.

    Raises:
        ValueError: too long, not UTF-8, not JSON, a key given twice, NaN or Infinity, a number
            of absurd length or size, lists and objects more than `MAX_DEPTH` deep, or a lone
            surrogate in a string. The text is one short sentence that begins with `what`.

    >>> parse_strict(b'{"r": 8, "r": 4}', "config", 100)
    Traceback (most recent call last):
    ...
    ValueError: config gives the key 'r' twice
    """
    if len(data) > max_bytes:
        raise ValueError(f"{what} has {len(data):,} bytes, above the limit of {max_bytes:,}")
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 (byte {error.start})") from None
    numbers = _Numbers()
    try:
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=numbers.unique_keys,
            parse_constant=numbers.constant,
            parse_int=numbers.short_int,
            parse_float=numbers.finite_float,
        )
        if numbers.refused:
            raise _DocumentError(numbers.refused[0].why)
        if b"\\ud" in data.lower():  # a surrogate escape: both halves must be there
            _check_characters(value, errors)
    except _DocumentError as error:
        raise ValueError(f"{what} {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} (position {error.pos})") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair in a string") from None
    return value


def check_depth(value: object) -> None:
    """Refuse a Python value that is nested more deeply than a document may be, or holds itself.

    Raises:
        ValueError: lists, tuples, sets and mappings more than `MAX_DEPTH` deep.
    """
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = {id(item): item for item in level if isinstance(item, _CONTAINERS)}
        level = [item for container in inside.values() for item in _items(container)]
        if not inside:
            return
    raise _too_deep()


_CONTAINERS = (Mapping, list, tuple, set, frozenset)


def _items(container: Any) -> Iterable[object]:
    return container.values() if isinstance(container, Mapping) else container


def _check_depth(text: str) -> None:
    """Refuse the text of a document that is nested too deeply, before it is parsed."""
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_deep()
        elif match[0] in "]}":
            depth -= 1


def _too_deep() -> _DocumentError:
    return _DocumentError(f"is nested too deeply (more than {MAX_DEPTH} levels)")


def _check_characters(value: Any, errors: str) -> None:
    """Raise UnicodeEncodeError if a string holds half of a surrogate pair; makes no copy of all."""
    items = [value]
    while items:
        item = items.pop()
        if isinstance(item, str):
            item.encode("utf-8", errors)
        elif isinstance(item, dict):
            items += item.keys()
            items += item.values()
        elif isinstance(item, list):
            items += item


class _DocumentError(ValueError):
    """The end of a sentence that begins with the document's name."""


@dataclass(frozen=True)
class _RefusedNumber:
    """Stands for a number until the field that holds it is known, which the error names.

    Attributes:
        why: the number is refused, as the end of a sentence.
    """

    why: str


class _Numbers:
    """The hooks of one `json.loads`.

    Attributes:
        refused: numbers found so far that are not accepted.
    """

    def __init__(self) -> None:
        self.refused: list[_RefusedNumber] = []

    def unique_keys(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise _DocumentError(f"gives the key {quoted(key)} twice")
                seen.add(key)
        if self.refused:
            for key, value in pairs:
                self._name(key, value)
        return result

    def _name(self, key: str, value: Any) -> None:
        """Raise if the value, or an item of it, was refused."""
        items = [value]
        while items:
            item = items.pop()
            if isinstance(item, _RefusedNumber):
                raise _DocumentError(f"field {quoted(key)} {item.why}")
            if isinstance(item, list):
                items += item

    def _refuse(self, why: str) -> _RefusedNumber:
        self.refused.append(_RefusedNumber(why))
        return self.refused[-1]

    def constant(self, text: str) -> Any:
        return self._refuse(f"holds {text}, which is not JSON")

    def short_int(self, text: str) -> Any:
        if len(text) > MAX_INTEGER_CHARS:
            return self._refuse(f"holds a number of {len(text):,} digits")
        return int(text)

    def finite_float(self, text: str) -> Any:
        if len(text) > MAX_FLOAT_CHARS:
            return self._refuse(f"holds a number of {len(text):,} digits")
        value = float(text)
        if not math.isfinite(value):
            return self._refuse(f"holds the number {text}, which is too large")
        return value
