"""Any report of this schema, `clair inspect`'s too, as the dataclasses it was written from.

A report may come from a stranger: its size and its nesting are bounded, each field has the type
and, where it is one of some words, a word of the model; every number is finite. No path in it is
opened. Fields that this version does not know are passed over.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clair_cli.report.file import damaged, read_document
from clair_cli.report.model import VERDICTS, ClientReport, CohortReport, Group, Report
from clair_cli.text import quoted
from clair_cli.version import __version__

_WORDS: Mapping[tuple[type, str], tuple[str, ...]] = {
    (ClientReport, "verdict"): VERDICTS,
    (ClientReport, "judged"): VERDICTS,
    (ClientReport, "confidence"): ("clear", "likely", "open"),
    (CohortReport, "outcome"): ("judged", "undetermined", "refused"),
    (CohortReport, "stacking"): ("matrix", "output", "input"),
    (Group, "role"): ("collaborative", "minority", "other", "loner"),
    (Report, "command"): ("merge", "inspect", "refine"),
}
_SHARES = {"weight", "p_honest", "power", "off_line_ratio", "contaminated_ratio"}  # 0 to 1
_MAX_KEY = 4096  # characters
_Made = TypeVar("_Made")


def load_report(path: str | PathLike[str]) -> Report:
    """Read a report from a file.

    Args:
        path: of the JSON file.

    Raises:
        UsageError: unreadable, no report, of another schema, or damaged; the message names the
            field.
    """
    file = Path(fspath(path))
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
    report = _made(Report, data, "the report")
    _check(report)
    return report


def _check(report: Report) -> None:
    """Raise unless parts of the report that belong together fit one another."""
    names = [client.name for client in report.clients]
    n = len(report.cohort.names)
    for table in (report.cohort.similarity, report.cohort.similarity_se):
        if len(table) != n or any(len(row) != n for row in table):
            raise ValueError(f"cohort.similarity is no table of {n:,} clients")
    if not set(report.cohort.names) <= set(names):
        raise ValueError("cohort.names has a name that is no client's")


def _made(kind: type[_Made], data: Any, where: str) -> _Made:
    """A dataclass from a JSON object."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {quoted(data, 40)}, expected an object")
    values: dict[str, Any] = {}
    known: Any = kind
    for name, key, type_, required in _fields_of(known):
        if key in data:
            inside = key if where == "the report" else f"{where}.{key}"
            values[name] = _value(type_, data[key], inside)
            _check_word(kind, name, values[name], inside)
        elif required:
            raise ValueError(f"{where} has no {key}")
    return kind(**values)


@lru_cache(maxsize=64)
def _fields_of(kind: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    """Of each field: its name, its key in JSON, its type, and whether it must be there."""
    assert is_dataclass(kind)
    hints = get_type_hints(kind, vars(sys.modules[kind.__module__]))
    return tuple((f.name, f.name.rstrip("_"), hints[f.name], _is_required(f)) for f in fields(kind))


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _check_word(kind: type, name: str, value: Any, where: str) -> None:
    known = _WORDS.get((kind, name))
    if known is not None and value is not None and value not in known:
        raise ValueError(f"{where} is {quoted(value, 40)}, expected one of {', '.join(known)}")
    if name in _SHARES and value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"{where} is {value:g}, expected 0 to 1")


def _value(type_: Any, given: Any, where: str) -> Any:
    """A JSON value as a type of the model's."""
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        if given is None and type(None) in arguments:
            return None
        (inner,) = (kind for kind in arguments if kind is not type(None))
        return _value(inner, given, where)
    if origin is Literal:
        if given not in arguments:
            raise ValueError(f"{where} is {quoted(given, 40)}, expected one of {arguments}")
        return given
    if origin is tuple:
        return _items(arguments, given, where)
    if origin is Mapping:
        if not isinstance(given, dict):
            raise ValueError(f"{where} is {quoted(given, 40)}, expected an object")
        return {_key(k, where): _value(arguments[1], v, f"{where}.{k}") for k, v in given.items()}
    if isinstance(type_, type) and is_dataclass(type_):
        return _made(type_, given, where)
    return _plain(type_, given, where)


def _key(key: str, where: str) -> str:
    if len(key) > _MAX_KEY:
        raise ValueError(f"{where} has a key of {len(key):,} characters")
    return key


def _items(arguments: tuple[Any, ...], given: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(given, list):
        raise ValueError(f"{where} is {quoted(given, 40)}, expected a list")
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(given))
    if len(given) != len(arguments):
        raise ValueError(f"{where} has {len(given):,} items, expected {len(arguments)}")
    return tuple(
        _value(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(arguments, given, strict=True))
    )


_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _plain(type_: Any, given: Any, where: str) -> Any:
    if type_ is object:
        return given
    kinds = (int, float) if type_ is float else (type_,)
    if not isinstance(given, kinds) or (isinstance(given, bool) and type_ is not bool):
        raise ValueError(f"{where} is {quoted(given, 40)}, expected {_NAMES[type_]}")
    if type_ is not float:
        return given
    try:
        return float(given)
    except OverflowError:
        raise ValueError(f"{where} is {quoted(given, 40)}, which is too large") from None
