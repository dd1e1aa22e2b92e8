"""A report's file, of which nothing is known yet: its size, its JSON and its schema are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.stores import followed, read_small
from clair_cli.formats.strict_json import parse_strict
from clair_cli.report.encode import MAX_REPORT, is_dense
from clair_cli.report.model import SCHEMA
from clair_cli.store.address import Place
from clair_cli.store.lookup import looked_up
from clair_cli.text import quoted

_MAX_DEPTH = 32


def read_document(path: Place, version: str) -> tuple[bytes, Mapping[str, Any]]:
    """The bytes of a report of this schema, and the object they say; its fields are not checked.

    Args:
        version: of this program, for the message about a schema that it does not know.

    Raises:
        UsageError: unreadable, no report, of another schema, or damaged.
    """
    shown = shown_report(path)
    try:
        raw = read_small(followed(looked_up(path)), path.as_posix(), MAX_REPORT)
        if is_dense(raw):
            raise ValueError("it holds more values than a report of its size")
        data = parse_strict(raw, "it", MAX_REPORT)
        _check_depth(data)
    except RejectedClient as error:
        raise UsageError(f"{shown} can't be read: {error.message}") from None
    except ValueError as error:
        raise UsageError(f"{shown} is damaged: {error}") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith(SCHEMA.partition("/")[0] + "/"):
        raise UsageError(f"{shown} is no report of clair", hint=f"expected schema {SCHEMA}")
    if schema != SCHEMA:
        raise UsageError(
            f"{shown} has schema {quoted(schema)}; clair {version} reads {SCHEMA}",
            hint=_other_schema(schema, data.get("version")),
        )
    return raw, data


def shown_report(path: Place) -> str:
    """What messages call a report."""
    return f"report {quoted(path.as_posix())}"


def damaged(path: Place, error: Exception) -> UsageError:
    """The error about a report whose fields are not what they should be."""
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return UsageError(f"{shown_report(path)} is damaged: {reason}")


def _other_schema(schema: str, version: Any) -> str:
    """What to do about a report of another schema."""
    number, ours = (text.partition("/")[2] for text in (schema, SCHEMA))
    if number.isascii() and number.isdigit() and len(number) < 9 and int(number) < int(ours):
        return "an older clair made it: run the merge or refinement again with this version"
    return f"use clair {quoted(version)}, which wrote it"


def _check_depth(data: Any) -> None:
    """Raise if lists and objects lie in one another deeper than in any report."""
    level = [data]
    for _ in range(_MAX_DEPTH):
        inside = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inside for v in values if isinstance(v, (dict, list))]
        if not level:
            return
    raise ValueError("it is nested too deeply")
