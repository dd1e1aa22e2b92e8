"""A report that was written earlier, by another version or a stranger: read with suspicion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.escape import from_bytes
from clair_cli.formats.regular_file import read_small
from clair_cli.formats.report_json import MAX_REPORT
from clair_cli.formats.strict_json import parse_strict, quoted
from clair_cli.report import SCHEMA

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class NamedAdapter:
    """One adapter that a report names.

    Attributes:
        folder: the client's folder inside the output, "" for a merge.
        sha256: of the weights file. config_sha256: of adapter_config.json, or None.
        rank: of every module. scaling, dtype: likewise, or None where the report has none.
    """

    folder: str
    sha256: str
    config_sha256: str | None
    rank: int
    scaling: float | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class OldReport:
    """A report on disk.

    Attributes:
        raw: its bytes. data: what they say.
        adapters: those it names; none when the run made none.
        shapes: of every module's update as a matrix, by its path in the adapters.
    """

    raw: bytes
    data: Mapping[str, Any]
    adapters: tuple[NamedAdapter, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def command(self) -> str:
        return str(self.data["command"])

    @property
    def options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self.data["options"]
        return options


def read_report(path: Path, version: str) -> OldReport:
    """Read the report of a merge or refinement.

    Args:
        version: of this program, for the message about a schema that it does not know.

    Raises:
        UsageError: unreadable, no report, of another schema, of `clair inspect`, or damaged.
    """
    shown = f"report {quoted(path.as_posix())}"
    try:
        raw = read_small(path.resolve(), path.as_posix(), MAX_REPORT)
        data = parse_strict(raw, "it", MAX_REPORT)
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
            hint=f"use clair {quoted(data.get('version'))}, which wrote it",
        )
    if data.get("command") == "inspect":
        raise UsageError(f"{shown} is of clair inspect, which writes no adapter")
    try:
        return OldReport(raw, data, _adapters(data), _shapes(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{shown} is damaged: {reason}") from None


def _adapters(data: Mapping[str, Any]) -> tuple[NamedAdapter, ...]:
    if data["command"] not in ("merge", "refine"):
        raise ValueError(f"unknown command {quoted(data['command'])}")
    _typed(data["options"], dict, "options")
    _typed(data["cohort"], dict, "cohort")
    for client in _typed(data["clients"], list, "clients"):
        _typed(_typed(client, dict, "a client")["name"], str, "a client's name")
    merged, refined = data["merged"], data["refined"]
    if data["command"] == "merge":
        return () if merged is None else (_adapter(_typed(merged, dict, "merged"), ""),)
    if refined is None:
        return ()
    clients = _typed(_typed(refined, dict, "refined")["clients"], list, "refined clients")
    # the text of a name that is not Unicode is no path, its bytes are
    behind = {c["name"]: c.get("name_bytes") for c in data["clients"]}
    return tuple(
        _adapter(client, _folder(client["name"], behind.get(client["name"]))) for client in clients
    )


def _adapter(fields: Mapping[str, Any], folder: str) -> NamedAdapter:
    config = fields["config_sha256"]
    return NamedAdapter(
        folder,
        _hash(fields["sha256"]),
        None if config is None else _hash(config),
        _typed(fields["rank"], int, "rank"),
        None
        if "scaling" not in fields
        else float(_typed(fields["scaling"], (int, float), "scaling")),
        None if "dtype" not in fields else _typed(fields["dtype"], str, "dtype"),
    )


def _folder(name: Any, encoded: Any) -> str:
    """A client's name as a folder; one that would lead elsewhere is no client's."""
    if encoded is not None:
        name = from_bytes(_typed(encoded, str, "name_bytes"))
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"{quoted(name)} is no client's folder")
    return name


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError(f"{quoted(value)} is no SHA-256")
    return value


def _shapes(data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules that were written, by their paths in the file."""
    shapes = {}
    for module in _typed(data["modules"], list, "modules"):
        axes = _typed(module["shape"], list, "a shape")
        shape = tuple(_typed(axis, int, "a shape") for axis in axes)
        if module["written"] is not None:
            shapes[_typed(module["written"], str, "a module's name")] = shape
    return shapes


def _typed(value: Any, kind: Any, what: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is {quoted(value, 40)}")
    return value
