"""Options from outside the command line: the environment over a file over their defaults.

A file is `clair.toml`, or `[tool.clair]` of pyproject.toml, in the working folder, or what
`--config` names. Nothing in CLIENTS is configuration: what strangers sent is not even opened.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.stores import read_small
from clair_cli.option import ADAPTER, ALLOWED, FLAG, PATH, WEIGHTS, Option
from clair_cli.output.targets import find_inside
from clair_cli.pipeline_options import REPORTS, report_under
from clair_cli.settings import OPTIONS, options_of
from clair_cli.store.address import Place, RemotePath, place_of
from clair_cli.text import quoted

CONFIG, PROJECT = "clair.toml", "pyproject.toml"
COMMANDS = ("merge", "inspect", "refine")
"""The commands whose options may stand in a file or the environment."""

PREFIX = "CLAIR_"
_NOT_OPTIONS = (f"{PREFIX}DEBUG", f"{PREFIX}BENCH_")  # the beginnings of names with another use
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_PATHS = (PATH, WEIGHTS, ADAPTER)
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Defaults:
    """What was found.

    Attributes:
        values: of the command's options, by name, checked.
        notes: what to tell the user.
    """

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def defaults_of(
    command: str, clients: Place, config: Path | None, environment: Mapping[str, str]
) -> Defaults:
    """The values of a command's options where the command line gives none.

    Args:
        config: what `--config` says, or None to look in the working folder.

    Raises:
        UsageError: an unknown key, a value that is none, a file that can't be read or that lies in
            CLIENTS.
    """
    known = options_of(command)
    in_file, notes = _from_file(clients, config)
    values = {name: value for name, value in in_file.items() if name in known}
    values |= {n: v for n, v in _from_environment(environment).items() if n in known}
    return Defaults(values, notes)


# Files


def _from_file(clients: Place, config: Path | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values in the file that counts, and what to say of it."""
    if config is None and _lies_in(Path(), clients):
        if any(os.path.lexists(name) for name in (CONFIG, PROJECT)):
            text = "no configuration is read in the working folder, which is CLIENTS or lies in it"
            return {}, (text,)
        return {}, ()
    for path in (Path(CONFIG), Path(PROJECT)) if config is None else (config,):
        if config is None and not os.path.lexists(path):
            continue
        shown = path.as_posix()
        table = _table(path, shown, _read(path, clients, shown))
        if table is not None:
            values = _checked(table, shown, path.parent)
            names = ", ".join(sorted(key.replace("_", "-") for key in values))
            return values, (f"{shown} sets {names}",) if names else ()
    return {}, ()


def _read(path: Path, clients: Place, shown: str) -> bytes:
    real = Path(os.path.realpath(path))
    if _lies_in(real, clients):
        raise UsageError(
            f"configuration {quoted(shown)} lies in CLIENTS, which strangers write to",
            hint="keep it outside of that folder",
        )
    try:
        return read_small(real, shown, _MAX_BYTES)
    except RejectedClient as error:
        raise UsageError(f"configuration {error.message}") from None


def _table(path: Path, shown: str, data: bytes) -> dict[str, Any] | None:
    """The table of our options in a file; None in a pyproject.toml that has none."""
    project = path.name == PROJECT
    if project and b"clair" not in data:  # somebody else's, which need not even be sound
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: Any = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"configuration {quoted(shown)} is no TOML file: {error}") from None
    if project:
        tools = table.get("tool")
        table = tools.get("clair") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{shown}: tool.clair is {quoted(table)}, expected a table")
    return table


def _checked(table: Mapping[str, Any], shown: str, folder: Path) -> dict[str, Any]:
    """The values in a table, by the options' names; paths are as seen from the file's folder."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in OPTIONS:
            flag = name.replace("_", "-")
            if name == "output":
                raise UsageError(f"{shown}: {flag} is given on the command line only: -o PATH")
            raise _unknown(f"{shown} has an unknown key {quoted(key)}", flag, _flags(OPTIONS))
        if name in found:
            raise UsageError(f"{shown} has {key.replace('_', '-')} twice, with - and with _")
        value = _value(name, OPTIONS[name], value, shown)
        if OPTIONS[name].kind in _PATHS:
            place = place_of(value)
            value = value if isinstance(place, RemotePath) else str(folder / place)
        elif OPTIONS[name].kind is REPORTS:
            value = [report_under(folder, one) for one in value]
        found[name] = value
    return found


def _value(name: str, option: Option, value: Any, where: str) -> Any:
    """A value as it would stand on the command line, once checked.

    Raises:
        UsageError: naming the place, what was given and what is expected.
    """
    several = isinstance(value, list) and option.kind.repeatable
    each = value if several else [value]
    plain = (dict,) if option.kind is ALLOWED else (str,) if several else (str, int, float, bool)
    if not all(isinstance(one, plain) for one in each):
        raise UsageError(f"{where}: {name} is {quoted(value)}, expected {option.kind.expected}")
    value = each if option.kind.repeatable else value
    try:
        option.value(name, value)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None
    return value


# The environment


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The values in variables `CLAIR_NAME`; an empty one counts as absent."""
    allowed = {n: o for n, o in OPTIONS.items() if o.in_environment}
    found = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable.startswith(_NOT_OPTIONS) or not text:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in allowed:
            found[name] = _value(name, allowed[name], _of_text(allowed[name], text), variable)
        elif name in OPTIONS or name == "output":
            raise UsageError(
                f"{variable}: {name.replace('_', '-')} is never taken from the environment",
                hint=f"unset {variable}, and give it on the command line",
            )
        else:
            names = [PREFIX + known.upper() for known in allowed]
            raise _unknown(f"environment variable {variable} is no option", variable, names)
    return found


def _of_text(option: Option, text: str) -> Any:
    """What a variable says: a flag's word, or one value a line."""
    if option.kind is FLAG:
        word = text.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else text
    return [line for line in text.splitlines() if line] if option.kind.repeatable else text


# Both


def _flags(names: Iterable[str]) -> list[str]:
    return [name.replace("_", "-") for name in names]


def _unknown(text: str, given: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(given, known, n=1)
    return UsageError(text, hint=f"did you mean {close[0]}?" if close else "see clair merge --help")


def _lies_in(path: Path, folder: Place) -> bool:
    """Whether a path is a folder, lies in it, or is one of its files by another name."""
    if isinstance(folder, RemotePath):
        return False
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        try:
            if os.path.samefile(place, folder):
                return True
        except OSError:
            continue
    try:
        status = os.stat(real)
    except OSError:
        return False
    return status.st_nlink > 1 and find_inside(folder, status) is not None
