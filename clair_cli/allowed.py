"""The allow list: clients whose very file a person has looked at and wants merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from typing import Any

from clair_cli.errors import UsageError
from clair_cli.text import quoted

_FIELDS = ("client", "sha256", "reason", "by", "until")


@dataclass(frozen=True)
class Allowed:
    """One entry.

    Attributes:
        client: its name. sha256: of its weights file, in hexadecimal.
        reason, by: why it may be merged, and who says so.
        until: the last day, as YYYY-MM-DD. expired: whether that was over when the list was read.
    """

    client: str
    sha256: str
    reason: str
    by: str
    until: str
    expired: bool


def today() -> date:
    """The day in UTC, the same everywhere."""
    return datetime.now(timezone.utc).date()


def parse_allowed(given: Any) -> tuple[Allowed, ...]:
    """The entries of an allow list.

    Args:
        given: mappings with the fields of `Allowed`; `expired` may be absent, and `until` a date.

    Raises:
        UsageError: naming the entry, and what it lacks or has wrong.
    """
    if isinstance(given, (str, Mapping)) or not hasattr(given, "__iter__"):
        raise ValueError
    return tuple(_entry(one, number) for number, one in enumerate(given or (), 1))


def _entry(given: Any, number: int) -> Allowed:
    if isinstance(given, Allowed):
        return given
    where = f"allow, entry {number}"
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} is {quoted(given)}, expected {', '.join(_FIELDS)}")
    for key in given:
        if key not in (*_FIELDS, "expired"):
            raise UsageError(f"{where} has an unknown key {quoted(key)}", hint=_EXPECTED)
    values: dict[str, Any] = {name: given.get(name) for name in _FIELDS}
    if type(values["until"]) is date:
        values["until"] = values["until"].isoformat()
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            found = "lacks" if name not in given else f"has {quoted(value)} as"
            raise UsageError(f"{where} {found} {name}", hint=_EXPECTED)
    if not re.fullmatch("[0-9a-fA-F]{64}", values["sha256"]):
        raise UsageError(f"{where} has {quoted(values['sha256'])} as sha256, expected 64 "
                         "hexadecimal digits")  # fmt: skip
    expired = given.get("expired", _day(values["until"], where) < today())
    if not isinstance(expired, bool):
        raise UsageError(f"{where} has {quoted(expired)} as expired, expected True or False")
    return Allowed(**{**values, "sha256": values["sha256"].lower(), "expired": expired})


_EXPECTED = f"each entry has {', '.join(_FIELDS[:-1])} and until, all of them"


def _day(text: str, where: str) -> date:
    try:
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{where} has {quoted(text)} as until, expected YYYY-MM-DD") from None


def record_allowed(entries: tuple[Allowed, ...]) -> list[dict[str, object]]:
    """The entries as plain values, as the report holds them."""
    return [asdict(entry) for entry in entries]
