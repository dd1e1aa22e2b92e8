"""What the readers of tensor names return: the part each tensor has, and the modules' pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from clair_cli.errors import shortened
from clair_cli.formats.strict_json import quoted

Format = Literal["peft", "diffusers", "kohya"]
Part = Literal["A", "B", "alpha", "base"]


@dataclass(frozen=True)
class TensorPart:
    """What one tensor's name says.

    Attributes:
        format: whose names these are.
        part: "A" or "B", "alpha" (a scalar, the module's alpha), or "base" (the base layer's
            own weight, which PEFT saves beside the LoRA of an embedding).
        module: module path as the file has it, without `prefix` and the adapter's name.
        prefix: "base_model.model." or "".
        adapter: PEFT's name of the adapter, or "".
        embedding: whether it says `lora_embedding`.
    """

    format: Format
    part: Part
    module: str
    prefix: str = ""
    adapter: str = ""
    embedding: bool = False


@dataclass(frozen=True)
class KeyPair:
    """The tensor names of one module: `lora_A`, `lora_B` and, where the file has it, alpha."""

    module: str
    key_A: str
    key_B: str
    key_alpha: str | None = None
    embedding: bool = False


@dataclass(frozen=True)
class KeyMap:
    """All pairs of one file.

    Attributes:
        prefix: what stands before every module path: "base_model.model." or "".
        pairs: sorted by module, one each, at least one.
        format: whose names these are.
        scale_inside: the file needs no config: a module's alpha is in the file, or is its rank
            by the rule of the format's own loader.
        notes: remarks for the report.
    """

    prefix: str
    pairs: tuple[KeyPair, ...]
    format: Format = "peft"
    scale_inside: bool = False
    notes: tuple[str, ...] = ()


MAX_NOTES = 20  # of one kind


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """Names for a message: the first few in sorted order, and how many more.

    >>> first_few(["b", "a", "d", "c"])
    "'a', 'b', 'c' and 1 more"
    """
    ordered = sorted(names)
    return some_of([*map(quoted, ordered[:limit]), *ordered[limit:]], limit)


def some_of(texts: Sequence[str], limit: int = 3) -> str:
    """The same of texts that are safe and ordered already."""
    text = ", ".join(texts[:limit])
    more = len(texts) - limit
    return f"{text} and {more:,} more" if more > 0 else text


def at_most(notes: Sequence[str], what: str) -> list[str]:
    """Notes of one kind for the report: the first of them, and how many more.

    >>> at_most(["x"] * 22, "notes on modules")[19:]
    ['x', 'and 2 more notes on modules']
    """
    more = len(notes) - MAX_NOTES
    shown = [shortened(note) for note in notes[:MAX_NOTES]]
    return [*shown, f"and {more:,} more {what}"] if more > 0 else shown
