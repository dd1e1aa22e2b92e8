"""The JSON Schema of a report, made from its dataclasses: types, constraints and docstrings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from clair_cli.report.fields import constraints_of, is_later, key_of, types_of
from clair_cli.report.model import SCHEMA, Report

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number"}
_ENTRY = re.compile(r"(\w+): (.+)")


def schema_text() -> str:
    """The JSON Schema (2020-12) of `clair.report/2`, as a document."""
    return json.dumps(report_schema(), indent=2) + "\n"


def report_schema() -> dict[str, Any]:
    """The same as plain dicts and lists. Every field has a description, unless Python runs without
    docstrings (-OO)."""
    found: dict[str, Any] = {}
    report = _object(Report, found)
    return {"$schema": _DIALECT, "title": SCHEMA, **report, "$defs": dict(sorted(found.items()))}


def _object(kind: type, found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass.

    Args:
        found: gets those of the dataclasses in it, by name.
    """
    about, described = descriptions(kind)
    types = types_of(kind)
    properties = {
        key_of(field): _described(described.get(field.name), _value(types[field.name], found))
        for field in fields(kind)
    }
    return _described(about, {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(key_of(f) for f in fields(kind) if not is_later(types[f.name])),
        "properties": properties,
    })  # fmt: skip


def _described(text: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, **schema} if text else schema


def _value(type_: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's values."""
    type_, constraints = constraints_of(type_)
    if get_origin(type_) in (Union, UnionType):
        (inner,) = (one for one in get_args(type_) if one is not NoneType)
        return _or_null(_value(inner, found))
    schema = _unconstrained(type_, found)
    for constraint in constraints:
        schema |= constraint.keywords
    if "enum" in schema:  # which says the type too
        schema.pop("type", None)
    return schema


def _unconstrained(type_: Any, found: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _value(arguments[0], found)}
    if origin is tuple:
        items, count = [_value(one, found) for one in arguments], len(arguments)
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
    if origin is Mapping:
        return {"type": "object", **_entries(arguments[0], arguments[1], found)}
    if isinstance(type_, type) and is_dataclass(type_):
        if type_.__name__ not in found:
            found[type_.__name__] = _object(type_, found)
        return {"$ref": f"#/$defs/{type_.__name__}"}
    return {"type": _PLAIN[type_]}


def _entries(key: Any, value: Any, found: dict[str, Any]) -> dict[str, Any]:
    """What a mapping's keys and values are."""
    keys = {k: v for one in constraints_of(key)[1] for k, v in one.keywords.items()}
    schema: dict[str, Any] = {"propertyNames": keys} if keys else {}
    return schema if value is object else {**schema, "additionalProperties": _value(value, found)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or null."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def descriptions(kind: type) -> tuple[str | None, dict[str, str]]:
    """What a dataclass's docstring says of it, and of its fields by name, in JSON's words.

    Each entry under "Attributes:" begins with the field's name and a colon.
    """
    lines = inspect.cleandoc(kind.__doc__ or "").split("\n")
    about = " ".join(lines[: lines.index("") if "" in lines else None])
    entries: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Attributes:") + 1 :] if "Attributes:" in lines else ():
        if not line.startswith("    "):
            break
        begun = _ENTRY.fullmatch(line[4:])
        if begun:
            name, text = begun.groups()
            entries[name] = text[:1].upper() + text[1:]
        else:
            entries[name] += f" {line.strip()}"
    said = {name: _in_json(text) for name, text in entries.items()}
    return (_in_json(about) or None), said


def _in_json(text: str) -> str:
    return re.sub(r"\bNone\b", "null", text)
