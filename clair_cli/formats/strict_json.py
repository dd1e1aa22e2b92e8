"""JSON from strangers: one parser for headers, configs and weights files.

The standard parser lets the last of two equal keys win, accepts NaN, and answers deep nesting
or very long numbers with errors of other kinds. Two readers could then see two different files.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_INTEGER_CHARS = 20  # 2**64 has 20 digits
MAX_FLOAT_CHARS = 64


def parse_strict(data: bytes, what: str, max_bytes: int) -> Any:
    """Parse one JSON document, refusing whatever two parsers could read differently.

    Args:
        data: the document, UTF-8 without a byte order mark.
        what: how error messages call it, for example "adapter_config.json".
        max_bytes: the largest accepted `len(data)`.

    Returns:
        What `json.loads` gives.

    Raises:
        ValueError: too long, not UTF-8, not JSON, a key given twice, NaN or Infinity, a number
            of absurd length or size, nesting too deep, or a lone surrogate in a string. The
            text is one short sentence that begins with `what`.

    >>> parse_strict(b'{"r": 8, "r": 4}', "config", 100)
    Traceback (most recent call last):
    ...
    ValueError: config gives the key 'r' twice
    """
    if len(data) > max_bytes:
        raise ValueError(f"{what} has {len(data):,} bytes, above the limit of {max_bytes:,}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_int=_short_int,
            parse_float=_finite_float,
        )
        if b"\\ud" in data.lower():  # a surrogate escape: both halves must be there
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _RefusedError as error:
        raise ValueError(f"{what} {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} (position {error.pos})") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half of a surrogate pair in a string") from None
    return value


def quoted(name: object, limit: int = 120) -> str:
    """`repr(name)` with control, bidi and undecodable characters escaped, cut to `limit`.

    >>> quoted("a\\x1b[31m")
    "'a\\\\x1b[31m'"
    """
    text = repr(name)
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


class _RefusedError(ValueError):
    """What is wrong, without the document's name."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"gives the key {quoted(key)} twice")
            seen.add(key)
    return result


def _no_constant(text: str) -> Any:
    raise _RefusedError(f"holds {text}, which is not JSON")


def _short_int(text: str) -> int:
    if len(text) > MAX_INTEGER_CHARS:
        raise _RefusedError(f"holds a number of {len(text):,} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if len(text) > MAX_FLOAT_CHARS:
        raise _RefusedError(f"holds a number of {len(text):,} digits")
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"holds the number {text}, which is too large")
    return value
