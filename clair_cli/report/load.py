"""Any report of this schema, `clair inspect`'s too, as the dataclasses it was written from.

A report may come from a stranger: its size and its nesting are bounded, each field has the type
and keeps the constraints of the model, as in the JSON Schema; every number is finite. No path in it
is opened. Fields that this version does not know are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from os import PathLike
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from clair_cli.report.fields import (
    LATER,
    Constraint,
    constraints_of,
    key_of,
    one_of,
    types_of,
)
from clair_cli.report.file import damaged, read_document
from clair_cli.report.model import Report
from clair_cli.store.address import RemotePath, place_of
from clair_cli.text import quoted
from clair_cli.version import __version__

_MAX_KEY = 4096  # characters
_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_Read = Callable[[Any], Any]


def load_report(path: str | PathLike[str] | RemotePath) -> Report:
    """Read a report from a file.

    Args:
        path: of the JSON file.

    Raises:
        UsageError: unreadable, no report, of another schema, or damaged; the message names the
            field.
    """
    file = place_of(path)
    _, data = read_document(file, __version__)
    try:
        return report_from(data)
    except (TypeError, ValueError) as error:
        raise damaged(file, error) from None


def report_from(data: Mapping[str, Any]) -> Report:
    """The report that a JSON document says; of `report_dict(report)`, the report itself.

    Raises:
        ValueError: a field is missing, or is not what it should be.
    """
    try:
        report: Report = _object(Report)(data)
    except _Wrong as error:
        raise ValueError(str(error)) from None
    _check(report)
    return report


class _Wrong(Exception):
    """A value is not what it should be. What it lies in adds to `path` as the error passes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text, self.path = text, ""

    def inside(self, step: str) -> _Wrong:
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        return f"{self.path.removeprefix('.') or 'the report'} {self.text}"


def _check(report: Report) -> None:
    """Raise unless parts of the report that belong together fit one another."""
    names = [client.name for client in report.clients]
    n = len(report.cohort.names)
    for table in (report.cohort.similarity, report.cohort.similarity_se):
        if len(table) != n or any(len(row) != n for row in table):
            raise ValueError(f"cohort.similarity is no table of {n:,} clients")
    if not set(report.cohort.names) <= set(names):
        raise ValueError("cohort.names has a name that is no client's")


@lru_cache(maxsize=64)
def _object(kind: Any) -> _Read:
    """The reader of a JSON object as a dataclass."""
    types = types_of(kind)
    known = [(field.name, key_of(field), _reader(types[field.name])) for field in fields(kind)]
    needed = {key_of(field) for field in fields(kind) if _is_required(field)}

    def read(given: Any) -> Any:
        if type(given) is not dict:
            raise _expected(given, "an object")
        if not needed <= given.keys():
            missing = next(key for _, key, _ in known if key in needed - given.keys())
            raise _Wrong(f"has no {missing}")
        values = {}
        for name, key, reader in known:
            if key in given:
                try:
                    values[name] = reader(given[key])
                except _Wrong as error:
                    raise error.inside(f".{key}") from None
        return kind(**values)

    return read


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _reader(type_: Any) -> _Read:
    """The reader of a JSON value as a type of the model's, which checks its constraints too."""
    type_, constraints = constraints_of(type_)
    read = _unchecked(type_)
    for constraint in constraints:
        if constraint is not LATER:
            read = _checked(read, constraint)
    return read


def _checked(read: _Read, constraint: Constraint) -> _Read:
    accepts, expected = constraint.accepts, constraint.expected

    def checked(given: Any) -> Any:
        value = read(given)
        if not accepts(value):
            raise _expected(given, expected)
        return value

    return checked


def _unchecked(type_: Any) -> _Read:
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        (inner,) = (_reader(kind) for kind in arguments if kind is not type(None))
        return lambda given: None if given is None else inner(given)
    if origin is Literal:
        return _checked(_plain(str), one_of(*arguments))
    if origin is tuple:
        return _several(arguments)
    if origin is Mapping:
        return _mapping(*map(_reader, arguments))
    if isinstance(type_, type) and is_dataclass(type_):
        return _object(type_)
    return (lambda given: given) if type_ is object else _plain(type_)


def _several(kinds: tuple[Any, ...]) -> _Read:
    """The reader of a list: of any length if the last kind is an ellipsis."""
    count = None if kinds[-1] is Ellipsis else len(kinds)
    reader = _reader(kinds[0])
    assert all(kind in (kinds[0], Ellipsis) for kind in kinds)

    def read(given: Any) -> tuple[Any, ...]:
        if type(given) is not list:
            raise _expected(given, "a list")
        if count is not None and len(given) != count:
            raise _Wrong(f"has {len(given):,} items, expected {count}")
        found: list[Any] = []
        try:
            found.extend(map(reader, given))
        except _Wrong as error:
            raise error.inside(f"[{len(found)}]") from None
        return tuple(found)

    return read


def _mapping(keys: _Read, reader: _Read) -> _Read:
    def read(given: Any) -> dict[str, Any]:
        if type(given) is not dict:
            raise _expected(given, "an object")
        found = {}
        for key, value in given.items():
            if len(key) > _MAX_KEY:
                raise _Wrong(f"has a key of {len(key):,} characters")
            try:
                found[keys(key)] = reader(value)
            except _Wrong as error:
                raise error.inside(f".{key}") from None
        return found

    return read


def _plain(kind: Any) -> _Read:
    """The reader of a text, a number, or true or false."""

    def read(given: Any) -> Any:
        if type(given) is kind:
            return given
        if kind is not float or type(given) is not int:
            raise _expected(given, _KINDS[kind])
        try:
            return float(given)
        except OverflowError:
            raise _expected(given, "a number that a float can hold") from None

    return read


def _expected(given: Any, what: str) -> _Wrong:
    return _Wrong(f"is {quoted(given, 40)}, expected {what}")
