"""A command to copy: the run of a report again with something changed, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from clair_cli.report.model import Report
from clair_cli.settings import OPTIONS
from clair_cli.text import printable

_OF_OUTPUT = ("output", "clients", "report", "force")  # said otherwise, or not again


def command_line(*words: str) -> str:
    """The words quoted for a shell; "" if one could not be shown, or pasted, as it is."""
    if any(not word or printable(word) != word for word in words):
        return ""
    return shlex.join(words)


def again(
    report: Report, command: str, output: str = "", changes: Mapping[str, Any] | None = None
) -> str:
    """A command on the same clients with the report's options, as far as it has them; "" where the
    clients were in memory or something can't be typed.

    Args:
        command: "merge", "inspect" or "refine".
        output: what `-o` names; "" leaves it out.
        changes: options with other values; those of lists are added.
    """
    options = dict(report.options)
    clients = options.get("clients")
    if not isinstance(clients, str) or clients == "(in memory)":
        return ""
    for name, value in (changes or {}).items():
        old = options.get(name)
        options[name] = [*old, *value] if isinstance(old, list) else value
    words = ["clair", command, clients, *(["-o", output] if output else [])]
    for name, value in options.items():
        if name in _OF_OUTPUT or name not in OPTIONS or command not in OPTIONS[name].commands:
            continue
        words += _words(f"--{name.replace('_', '-')}", value, _default(name, report.command))
    return command_line(*words)


def _default(name: str, command: str) -> Any:
    declared = OPTIONS[name]
    return declared.kind.record(declared.default_and_help(command)[0])


def _words(flag: str, value: Any, default: Any) -> list[str]:
    if value is None or value is False or value == default or value == "(in memory)":
        return []
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        value = [f"{name}={number}" for name, number in value.items()]
    if isinstance(value, (list, tuple)):
        return [word for one in value for word in (flag, str(one))]
    return [flag, str(value)]
