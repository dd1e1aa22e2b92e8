"""Dataclasses as plain dicts, lists, strings and numbers: what JSON has words for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from clair_cli.report.fields import key_of
from clair_cli.text import whole_characters


def plain(value: object) -> object:
    """The value with keys as in the dataclasses, in the order of their fields.

    Raises:
        TypeError: a value that JSON has no word for (a tensor, a path, a numpy number).
    """
    # `type(...) in`, not isinstance: numpy.float64 is a float, and must not slip through.
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return whole_characters(value)
    if is_dataclass(value):
        return {key_of(field): plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    raise TypeError(f"a report can't hold a {type(value).__name__}")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a report's keys are strings, got a {type(key).__name__}")
    return whole_characters(key)
