"""Words from strangers, made safe to print and to read. Standard library only."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_AT_START = re.compile(r"(?<!\S)::")
_BEFORE_HOST = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]+:/{1,2})\S*@")
_BEHIND_KEY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]+:/{1,2}[^\s'\"?#]*[?#])[^\s'\"]+")
_LOG_COMMAND = re.compile(r"#(#(?:vso)?\[)", re.IGNORECASE)


def printable(text: str) -> str:
    r"""`text` with everything that could steer a terminal or a log written as an escape.

    Escaped are control characters (ESC, newline, tab), format and bidi characters, line and
    paragraph separators, unassigned and private characters, and lone surrogates. A surrogate
    that stands for an undecodable byte becomes that byte. `::` at the start of a line would be a
    command in the log of GitHub Actions, so where a word begins with it, which may begin a line of
    a narrow terminal, its first colon is escaped too, and so is the first `#` of `##[` and
    `##vso[`, which it and Azure Pipelines obey anywhere in a line. Everything else, backslashes
    included, stays as it is. Every writer of words to a terminal passes names through here.

    >>> print(printable("a\x1b[31mb\n\u202ec\udcff"))
    a\x1b[31mb\x0a\u202ec\xff
    >>> print(printable("::error::[/] bob"))
    \x3a:error::[/] bob
    >>> print(printable("a ##vso[task.complete]"))
    a \x23#vso[task.complete]
    """
    text = _LOG_COMMAND.sub(r"\\x23\1", text)
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)
    return _AT_START.sub(r"\\x3a:", text) if "::" in text else text


def without_secrets(text: str) -> str:
    """`text` without what stands before the host of an address, and behind its key: an argument in
    the wrong place is shown in a message as it was typed.

    >>> without_secrets("no 's3://me:pass@bucket/x', https://host/x?sig=1 or 's3://bucket/x'?")
    "no 's3://...@bucket/x', https://host/x?... or 's3://bucket/x'?"
    """
    text = _BEFORE_HOST.sub(r"\1...@", text)
    return _BEHIND_KEY.sub(r"\1...", text)


def whole_characters(text: str) -> str:
    r"""`text` with only the lone surrogates escaped: for files, where all else is fine.

    >>> whole_characters("caf\u00e9 \udcff\ud800")
    'café \\xff\\ud800'
    """
    if text.isascii():
        return text
    return "".join(_escaped(ord(c)) if "\ud800" <= c <= "\udfff" else c for c in text)


def bytes_of(text: str) -> str | None:
    r"""Base64 of the bytes behind a name that is not Unicode; None for all others.

    >>> bytes_of("caf\udce9"), bytes_of("caf\u00e9")
    ('Y2Fm6Q==', None)
    """
    if whole_characters(text) == text:
        return None
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")


def from_bytes(encoded: str) -> str:
    r"""The name behind `bytes_of`.

    Raises:
        ValueError: not base64.

    >>> from_bytes("Y2Fm6Q==")
    'caf\udce9'
    """
    return base64.b64decode(encoded, validate=True).decode("utf-8", "surrogateescape")


def by_spelling(names: Iterable[str]) -> dict[str, str]:
    r"""Names that are not Unicode, by what a report calls them (`caf\xe9`): so they can be typed.

    A spelling that is another's name, or two names', is left out.

    >>> by_spelling(["caf\udce9", "anna", "b\udcff", "b\\xff"])
    {'caf\\xe9': 'caf\udce9'}
    """
    found = [(whole_characters(name), name) for name in names]
    counts = Counter(spelt for spelt, _ in found)
    return {spelt: name for spelt, name in found if spelt != name and counts[spelt] == 1}


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode of the byte 0x80 to 0xFF
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(name: object, limit: int = 120) -> str:
    """`repr(name)` with control, bidi and undecodable characters escaped, cut to `limit`.

    >>> quoted("a\\x1b[31m")
    "'a\\\\x1b[31m'"
    """
    try:
        text = repr(name)
    except (ValueError, RecursionError):  # an int of thousands of digits, lists in lists
        text = f"{type(name).__name__} that can't be shown"
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def escaped(name: str) -> str:
    r"""The name in quotes, all but ASCII escaped: names that look the same to people differ.

    >>> print(escaped("e\u0301"), escaped("\u00e9"))
    'e\u0301' '\xe9'
    """
    return ascii(name)


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Names for a message: the first few in sorted order, and how many more.

    >>> first_few(["b", "a", "d", "c"])
    "'a', 'b', 'c' and 1 more"
    """
    ordered = sorted(names)
    return some_of([*map(quoted, ordered[:limit]), *ordered[limit:]], limit)


MAX_NOTES = 20  # of one kind


def some_of(texts: Sequence[str], limit: int = 3) -> str:
    """The same of texts that are safe and ordered already."""
    text = ", ".join(texts[:limit])
    more = len(texts) - limit
    return f"{text} and {more:,} more" if more > 0 else text
