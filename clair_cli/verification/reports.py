"""Two reports of the same run, as plain data: what differs between them, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from clair_cli.report.fields import later_keys
from clair_cli.report.model import Report
from clair_cli.report.read import OldReport
from clair_cli.text import quoted

_SHOWN = 5
_SECTIONS = ("exit_code", "cohort", "modules", "merged", "refined", "warnings")
_PATHS = {"path"}  # as given by whoever ran it


def compare_reports(
    old: OldReport, new: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(differences, notes)`: the clients' files and verdicts first; the numbers only if the files
    are the same, since they follow from them.

    Versions are a note: another version may well find the same.
    """
    before = {client["name"]: client for client in old.data["clients"]}
    after = {client["name"]: client for client in new["clients"]}
    differences = [*_inputs(old.data.get("inputs", {}), new["inputs"]), *_files(before, after)]
    both = sorted(before.keys() & after.keys())
    verdicts = [_changed(n, before[n], after[n], "verdict") for n in both]
    numbers = [line for n in both for line in _numbers(n, before[n], after[n])]
    numbers += _sections(old.data, new)
    if differences:
        differences += filter(None, verdicts)
        differences += ["so the numbers of the report differ too"] if numbers else []
    else:
        differences += [*filter(None, verdicts), *numbers[:_SHOWN]]
        if len(numbers) > _SHOWN:
            differences.append(f"{len(numbers) - _SHOWN} more values of the report differ")
    notes = []
    if old.data.get("version") != new["version"]:
        notes.append(
            f"the report is by clair {quoted(old.data.get('version'))}, this is {new['version']}"
        )
    return tuple(differences), tuple(notes)


def same_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the clients, and what was given beside them, are the same files under any name."""
    both = [sorted(str(client["sha256"]) for client in data["clients"]) for data in (old, new)]
    return both[0] == both[1] and old.get("inputs", {}) == new["inputs"]


def _inputs(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Inputs beside the clients that are other files now, by option."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            option, _, number = name.partition("earlier_")
            flag = f"--earlier, report {number}," if number else f"--{option.replace('_', '-')}"
            yield f"{flag} has sha256 {after.get(name)}, the report says {quoted(before.get(name))}"


def _files(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Clients that came, went or have another file, by name."""
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"client {quoted(name)} is in the report and not in CLIENTS"
        elif name not in before:
            yield f"client {quoted(name)} is in CLIENTS and not in the report"
        elif changed := _changed(name, before[name], after[name], "sha256"):
            yield changed


def _changed(name: str, before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    if before.get(key) == after[key]:
        return ""
    return f"client {quoted(name)} has {key} {after[key]}, the report says {before.get(key)}"


def _numbers(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """One line for all values of a client that differ, but for its file and verdict."""
    known = ("sha256", "verdict")
    old, new = ({k: v for k, v in c.items() if k not in known} for c in (before, after))
    found = list(_leaves("", old, new))
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"client {quoted(name)}: {found[0]}{more}"


def _sections(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in _SECTIONS:
        yield from _leaves(key, old.get(key), new[key])


@lru_cache(maxsize=1)
def _later_fields() -> frozenset[str]:
    """Fields that `clair.report/2` did not have at first."""
    return frozenset(later_keys(Report))


def _leaves(where: str, old: Any, new: Any) -> Iterator[str]:
    """The values at which two documents differ, with where they stand. A field that an earlier
    version did not write yet is no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys(), key=str):
            if key not in _PATHS and not (key not in old and key in _later_fields()):
                inside = f"{where}.{key}" if where else str(key)
                yield from _leaves(inside, old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(f"{where}[{index}]", one, other)
    elif old != new:
        yield f"{where} is {quoted(new, 60)}, the report says {quoted(old, 60)}"
