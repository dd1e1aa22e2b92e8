"""A report that was written earlier, by another version or a stranger: read with suspicion.

It may cost about eleven times its size in memory, and no number in it raises a limit far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clair_cli.errors import UsageError
from clair_cli.formats.limits import Limits, capped_limits, parse_limits
from clair_cli.report.file import damaged, read_document, shown_report
from clair_cli.store.address import Place
from clair_cli.text import from_bytes, quoted

_HASH = re.compile("[0-9a-f]{64}")
_MAX_NAME_BYTES = 4 * 255  # of a client's folder: no file system has longer names


@dataclass(frozen=True)
class NamedAdapter:
    """One adapter that a report names.

    Attributes:
        folder: the client's folder inside the output, "" for a merge.
        sha256: of the weights file. config_sha256: of adapter_config.json, or None.
        heads: names of the dense tensors, to their shapes.
        rank: of every module. scaling, dtype: likewise, or None where the report has none.
    """

    folder: str
    sha256: str
    config_sha256: str | None
    rank: int
    scaling: float | None = None
    dtype: str | None = None
    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class OldReport:
    """A report on disk.

    Attributes:
        raw: its bytes. data: what they say.
        adapters: those it names; none when the run made none.
        shapes: of every module's delta weight as a matrix, by its path in the adapters.
        limits: those that the clients were read with, none far above its default.
        limits_kept: whether they are as the report has them.
    """

    raw: bytes
    data: Mapping[str, Any]
    adapters: tuple[NamedAdapter, ...]
    shapes: Mapping[str, tuple[int, ...]]
    limits: Limits
    limits_kept: bool

    @property
    def command(self) -> str:
        return str(self.data["command"])

    @property
    def options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self.data["options"]
        return options


def read_report(path: Place, version: str) -> OldReport:
    """Read the report of a merge or refinement.

    Args:
        version: of this program, for the message about a schema that it does not know.

    Raises:
        UsageError: unreadable, no report, of another schema, of `clair inspect`, or damaged.
    """
    raw, data = read_document(path, version)
    if data.get("command") == "inspect":
        raise UsageError(f"{shown_report(path)} is of clair inspect, which writes no adapter")
    try:
        limits = _limits(data)
        capped = capped_limits(limits)
        return OldReport(
            raw, data, _adapters(data, capped), _shapes(data), capped, limits == capped
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from None


def _limits(data: Mapping[str, Any]) -> Limits:
    given = _typed(_typed(data["options"], dict, "options").get("limit", {}), dict, "limit")
    try:  # the largest one has more digits than may be typed
        return parse_limits(
            {n: min(v, 10**17) if isinstance(v, int) else v for n, v in given.items()}
        )
    except UsageError as error:
        raise ValueError(f"options are damaged: {error.message}") from None


def _adapters(data: Mapping[str, Any], limits: Limits) -> tuple[NamedAdapter, ...]:
    if data["command"] not in ("merge", "refine"):
        raise ValueError(f"unknown command {quoted(data['command'])}")
    _typed(data["cohort"], dict, "cohort")
    _typed(data.get("inputs", {}), dict, "inputs")
    if len(_typed(data["clients"], list, "clients")) > limits.max_clients:
        raise ValueError(f"it has {len(data['clients']):,} clients")
    for client in _typed(data["clients"], list, "clients"):
        _typed(_typed(client, dict, "a client")["name"], str, "a client's name")
    merged, refined = data["merged"], data["refined"]
    if data["command"] == "merge":
        if merged is None:
            return ()
        return (_adapter(_typed(merged, dict, "merged"), "", _heads(merged)),)
    if refined is None:
        return ()
    clients = _typed(_typed(refined, dict, "refined")["clients"], list, "refined clients")
    # the text of a name that is not Unicode is no path, its bytes are
    behind = {c["name"]: c.get("name_bytes") for c in data["clients"]}
    if len(clients) > len(data["clients"]):
        raise ValueError(f"{len(clients):,} of {len(data['clients']):,} clients are refined")
    return tuple(
        _adapter(client, _folder(client["name"], behind.get(client["name"])), _heads(refined))
        for client in clients
    )


def _heads(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    found = {}
    for head in _typed(fields.get("heads", []), list, "heads"):
        shape = _typed(_typed(head, dict, "a head")["shape"], list, "a head's shape")
        name = _typed(head["name"], str, "a head's name")
        found[name] = tuple(_typed(axis, int, "a head's shape") for axis in shape)
    return found


def _adapter(
    fields: Mapping[str, Any], folder: str, heads: Mapping[str, tuple[int, ...]]
) -> NamedAdapter:
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
        heads,
    )


def _folder(name: Any, encoded: Any) -> str:
    """A client's name as a folder; one that would lead elsewhere is no client's."""
    if encoded is not None:
        if len(_typed(encoded, str, "name_bytes")) > _MAX_NAME_BYTES * 4 // 3:
            raise ValueError(f"name_bytes has {len(encoded):,} characters")
        name = from_bytes(encoded)
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"{quoted(name)} is no client's folder")
    if len(name) > _MAX_NAME_BYTES:
        raise ValueError(f"a client's folder has a name of {len(name):,} characters")
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
        if len(axes) != 2:
            raise ValueError(f"a shape has {len(axes):,} axes")
        shape = tuple(_typed(axis, int, "a shape") for axis in axes)
        if module["written"] is not None:
            shapes[_typed(module["written"], str, "a module's name")] = shape
    return shapes


def _typed(value: Any, kind: Any, what: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} is {quoted(value, 40)}")
    return value
