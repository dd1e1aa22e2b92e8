"""A command to copy: the run of a report again with something changed, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from clair_cli.report.model import Report
from clair_cli.settings import OPTIONS
from clair_cli.text import printable

_OF_OUTPUT = ("output", "clients", "report", "force")  # said otherwise, or not again
_OF_ONE_COMMAND = ("fail_on",)  # its default differs


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
        if name in _OF_ONE_COMMAND and command != report.command:
            continue
        if value != _default(name, report):
            words += _typed(name, value)
    return command_line(*words)


def _default(name: str, report: Report) -> Any:
    """What a report of the same command has for an option that was not given."""
    if name == "min_clients":
        return 2 if report.options.get("trust") or report.options.get("trust_adapter") else 3
    default = OPTIONS[name].default_and_help(report.command)[0]
    return list(default) if isinstance(default, tuple) else default


def _typed(name: str, value: Any) -> list[str]:
    """An option as it is typed; nothing for what can't be."""
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == "(in memory)":
        return []
    if value is True:
        return [flag]
    if isinstance(value, Mapping):
        value = [f"{key}={number}" for key, number in value.items()]
    if isinstance(value, (list, tuple)):
        return [word for one in value for word in (flag, str(one))]
    return [flag, str(value)]


def folded(command: str, width: int) -> list[str]:
    """The command in lines of at most `width` columns that a shell reads as one, where its words
    allow that.

    >>> folded("clair explain 'north ward' --report r.json", 24)
    ['clair explain \\\\', "  'north ward' \\\\", '  --report r.json']
    """
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(word) > width - 2:
            lines.append("  ")
        lines[-1] += f" {word}" if lines[-1].strip() else word
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
