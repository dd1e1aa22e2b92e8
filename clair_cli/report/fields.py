"""Fields of the report's dataclasses: keys in JSON, types, and what their values must be.

A field is declared once, where its dataclass is: what a value must be beyond its type stands in
`Annotated[...]`, and what it means under "Attributes:" of the docstring. The JSON Schema and the
check of reports that are read follow from that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True, eq=False)
class Constraint:
    """What a value must be beyond its type.

    Attributes:
        keywords: of JSON Schema that say so.
        expected: the same in words, as in "is 1.5, expected 0 to 1".
        accepts: whether a value of the right type is such a value.
    """

    keywords: Mapping[str, Any]
    expected: str
    accepts: Callable[[Any], bool]


def between(least: float, most: float) -> Constraint:
    """A number from `least` to `most`, both included."""
    keywords = {"minimum": least, "maximum": most}
    return Constraint(keywords, f"{least:g} to {most:g}", lambda value: least <= value <= most)


def at_least(least: float) -> Constraint:
    """A number of at least `least`."""
    return Constraint({"minimum": least}, f"at least {least:g}", lambda value: value >= least)


def one_of(*values: str | int) -> Constraint:
    """One of some words or numbers."""
    expected = f"one of {', '.join(map(str, values))}"
    return Constraint({"enum": list(values)}, expected, lambda value: value in values)


def matching(pattern: str, expected: str) -> Constraint:
    """A text that matches a pattern as a whole.

    Args:
        pattern: from `^` to `$`, of what Python and ECMAScript both know.
    """
    whole = re.compile(pattern)
    return Constraint({"pattern": pattern}, expected, lambda v: whole.fullmatch(v) is not None)


LATER = Constraint({}, "", lambda value: True)
"""Of a field that the format did not have at first: a report without it follows the schema too."""

Count = Annotated[int, at_least(0)]
Size = Annotated[float, at_least(0)]
"""A norm, an error or a standard error: at least 0."""
Share = Annotated[float, between(0, 1)]
Text = Annotated[str, Constraint({"minLength": 1}, "a text that is not empty", bool)]
Code = Annotated[str, matching("^[a-z0-9_]+$", "a code of small letters, digits and underscores")]
Word = Annotated[str, matching("^[a-z_]+$", "small letters and underscores")]
InputName = Annotated[str, matching("^[a-z_]+[0-9]*$", "small letters, underscores, then digits")]
Rank = Annotated[str, matching("^(0|[1-9][0-9]*)$", "a rank in digits")]
Sha256 = Annotated[str, matching("^[0-9a-f]{64}$", "a SHA-256 in 64 hexadecimal digits")]


def key_of(field: Field[Any]) -> str:
    """The field's key in JSON; that of a name that is a word of Python's ends in an underscore."""
    return field.name.rstrip("_")


def types_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name, `Annotated` where they have constraints."""
    return get_type_hints(kind, vars(sys.modules[kind.__module__]), include_extras=True)


def constraints_of(type_: Any) -> tuple[Any, tuple[Constraint, ...]]:
    """The type inside `Annotated` and its constraints; any other type itself, and none."""
    if get_origin(type_) is not Annotated:
        return type_, ()
    inner, *more = get_args(type_)
    return inner, tuple(one for one in more if isinstance(one, Constraint))


def is_later(type_: Any) -> bool:
    """Whether the format did not have a field of this type at first."""
    return LATER in constraints_of(type_)[1]


def later_keys(kind: type) -> set[str]:
    """Keys of the fields that came later, of a dataclass and of all inside it."""
    return {
        key_of(field)
        for part in dataclasses_in(kind)
        for field in fields(part)
        if is_later(types_of(part)[field.name])
    }


def dataclasses_in(type_: Any) -> list[type]:
    """The dataclasses that a type is made of, itself first, each once."""
    found: dict[type, None] = {}
    waiting = [type_]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and is_dataclass(one) and one not in found:
            found[one] = None
            waiting += types_of(one).values()
        waiting += get_args(one)
    return list(found)
