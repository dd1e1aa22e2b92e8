"""What a recogniser of tensor names returns: which two tensors make each module's pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from clair_cli.formats.strict_json import quoted


@dataclass(frozen=True)
class KeyPair:
    """The two tensor names of one module, `lora_A` and `lora_B`."""

    module: str
    key_A: str
    key_B: str


@dataclass(frozen=True)
class KeyMap:
    """All pairs of one file.

    Attributes:
        prefix: what stands before every module path: "base_model.model." or "".
        pairs: sorted by module, one each, at least one.
        notes: remarks for the report.
    """

    prefix: str
    pairs: tuple[KeyPair, ...]
    notes: tuple[str, ...] = ()


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Names for a message: the first few in sorted order, and how many more.

    >>> first_few(["b", "a", "d", "c"])
    "'a', 'b', 'c' and 1 more"
    """
    ordered = sorted(names)
    text = ", ".join(quoted(name) for name in ordered[:limit])
    more = len(ordered) - limit
    return f"{text} and {more:,} more" if more > 0 else text
