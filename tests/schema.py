"""Whether a report follows its schema, in an eighth of jsonschema's time: hundreds of tests ask.

What `follows` accepts jsonschema accepts (`tests/report/test_schema.py`). What it does not accept
is left to jsonschema, which says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

TYPES: dict[str, Check] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: type(v) is int,
    "number": lambda v: type(v) in (int, float),
}
NOTES = {"$schema", "$defs", "title", "description", "format"}


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def same(one: Any, other: Any) -> bool:
    """Equal scalars of one type; a list or an object is left to jsonschema."""
    return type(one) is type(other) and not isinstance(one, (list, dict)) and one == other


def follows(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Check:
    """A check of values by a schema.

    Args:
        root: where `$ref` leads into; the schema itself by default.

    Raises:
        KeyError: for a keyword that is not known here.
    """
    root = schema if root is None else root
    known: dict[str, Check] = {}

    def lazily(name: str) -> Check:
        def check(value: Any) -> bool:
            if name not in known:
                known[name] = made(root["$defs"][name.removeprefix("#/$defs/")])
            return known[name](value)

        return check

    def made(part: Mapping[str, Any]) -> Check:
        told = {"additionalProperties"} if "properties" in part else set()
        told |= {"items"} if "prefixItems" in part else set()  # together with the other
        checks = [keyword(k, v, part) for k, v in part.items() if k not in NOTES | told]
        if len(checks) == 1:
            return checks[0]
        return lambda value: all(check(value) for check in checks)

    def keyword(name: str, given: Any, part: Mapping[str, Any]) -> Check:
        if name == "$ref":
            return lazily(given)
        if name == "anyOf":
            several = [made(one) for one in given]
            return lambda value: any(check(value) for check in several)
        if name == "items":
            return elements([], given)
        if name == "prefixItems":
            return elements(given, part.get("items", {}))
        if name == "additionalProperties":
            return fields({}, given)
        if name == "properties":
            return fields(given, part.get("additionalProperties", True))
        if name == "propertyNames":
            names = made(given)
            return lambda value: not isinstance(value, dict) or all(map(names, value))
        return SIMPLE[name](given)

    def elements(first: list[Any], rest: Any) -> Check:
        heads, tail = [made(one) for one in first], made(plain(rest))

        def check(value: Any) -> bool:
            if not isinstance(value, list):
                return True
            begun = all(head(item) for head, item in zip(heads, value, strict=False))
            return begun and all(map(tail, value[len(heads) :]))

        return check

    def fields(listed: Mapping[str, Any], others: Any) -> Check:
        by_name, other = {name: made(one) for name, one in listed.items()}, made(plain(others))

        def check(value: Any) -> bool:
            return not isinstance(value, dict) or all(
                by_name.get(name, other)(item) for name, item in value.items()
            )

        return check

    return made(schema)


def plain(schema: Any) -> Mapping[str, Any]:
    """A schema that is a truth value, as a mapping."""
    if isinstance(schema, bool):
        return {} if schema else {"enum": []}
    found: Mapping[str, Any] = schema
    return found


# Keywords without schemas inside. As in JSON Schema, each speaks of one type only.
SIMPLE: dict[str, Callable[[Any], Check]] = {
    "type": lambda given: (
        TYPES[given] if isinstance(given, str) else lambda v: any(TYPES[name](v) for name in given)
    ),
    "const": lambda given: lambda v: same(v, given),
    "enum": lambda given: lambda v: any(same(v, one) for one in given),
    "required": lambda given: lambda v: not isinstance(v, dict) or all(n in v for n in given),
    "minimum": lambda given: lambda v: not is_number(v) or v >= given,
    "maximum": lambda given: lambda v: not is_number(v) or v <= given,
    "exclusiveMinimum": lambda given: lambda v: not is_number(v) or v > given,
    "minLength": lambda given: lambda v: not isinstance(v, str) or len(v) >= given,
    "minItems": lambda given: lambda v: not isinstance(v, list) or len(v) >= given,
    "maxItems": lambda given: lambda v: not isinstance(v, list) or len(v) <= given,
    "pattern": lambda given: lambda v: not isinstance(v, str) or re.search(given, v) is not None,
}
