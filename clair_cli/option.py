"""One option of a command: its values, their check, its words of help. Opens nothing, no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from clair_cli.allowed import parse_allowed, record_allowed
from clair_cli.errors import UsageError
from clair_cli.formats.limits import Limits, changed_limits, parse_limits
from clair_cli.store.address import RemotePath, parse_path
from clair_cli.text import quoted

OUTPUT, JUDGING, READING, RUNNING = "Output", "Judging", "Reading", "Running"
"""The headings of the help that options stand under."""


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Attributes:
        expected: the values in words, as in "expected a positive number".
        parse: makes the value of a text from the command line or of a Python value; of a
            repeatable option it gets all of them. Raises ValueError where it is no such value, or
            `UsageError` with the whole message.
        metavar: how help shows a value; "" for a flag, which takes none.
        minimum: of a whole number; None for other values.
        repeatable: whether the option may be given several times.
        record: makes the plain value that stands in the report.
    """

    expected: str
    parse: Callable[[Any], Any]
    metavar: str = ""
    minimum: int | None = None
    repeatable: bool = False
    record: Callable[[Any], object] = _unchanged


@dataclass(frozen=True)
class Option:
    """An option.

    Attributes:
        panel: the heading in the help.
        commands: the commands that have it.
        default: the value where it is not given.
        in_inspect: default and help of `inspect`, where these are others.
        short: another name on the command line, such as "-f".
        older: its name in earlier versions, which is still taken.
        recorded: whether it stands in the report.
        in_environment: whether `CLAIR_NAME` may give it: not what decides where results go, what
            is replaced and who is believed.
        on_command_line: whether it is a flag too, and not in files and Python alone.
    """

    kind: Kind
    help: str
    panel: str
    commands: tuple[str, ...]
    default: Any = None
    in_inspect: tuple[Any, str] | None = None
    short: str = ""
    older: str = ""
    recorded: bool = True
    in_environment: bool = True
    on_command_line: bool = True

    def default_and_help(self, command: str) -> tuple[Any, str]:
        if command == "inspect" and self.in_inspect is not None:
            return self.in_inspect
        return self.default, self.help

    def value(self, name: str, given: object) -> Any:
        """The checked value of what was given; None stays None where that is the default.

        Raises:
            UsageError: naming the option, what was given and what is expected.
        """
        if given is None and self.default is None:
            return None
        try:
            return self.kind.parse(given)
        except ValueError:
            raise UsageError(f"{name} is {quoted(given)}, expected {self.kind.expected}") from None


def option(kind: Kind, help_: str, panel: str, commands: tuple[str, ...], **more: Any) -> Any:
    """A field of `Settings` that is an option; parameters as in `Option`."""
    declared = Option(kind, help_, panel, commands, **more)
    default = declared.default
    if default is not None:
        default = kind.parse(default)
    return field(default=default, metadata={"option": declared})


# Kinds of values


def _flag(given: object) -> bool:
    if not isinstance(given, bool):
        raise ValueError
    return given


def _path_or(kind: Callable[[object], bool]) -> Callable[[Any], Any]:
    return lambda given: given if kind(given) else parse_path(given)


def _number(given: Any) -> Any:
    """A number as it is, or the one that a text says."""
    if isinstance(given, bool) or not isinstance(given, (str, Real)):
        raise ValueError
    return float(given) if isinstance(given, str) else given


def _positive(given: object) -> Any:
    value = _number(given)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError
    return value


def _share(given: object) -> Any:
    value = _number(given)
    if not 0 < value < 1:
        raise ValueError
    return value


def _fraction(given: object) -> Any:
    value = _number(given)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _whole(given: Any, minimum: int) -> int:
    if isinstance(given, str) and given.isascii() and given.isdigit():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or given < minimum:
        raise ValueError
    return given


def _rank(given: Any) -> str | int:
    return str(given) if given in ("auto", "same", "full") else _whole(given, 1)


def _checkpoint(given: Any) -> str | int:
    return str(given) if given in ("last", "best") else _whole(given, 0)


def _engine(given: Any) -> str:
    name, mark, address = given.partition("=") if isinstance(given, str) else ("", "", "")
    if given == "local" or (name == "ray" and bool(mark) == bool(address.strip())):
        if "://" in address:
            raise UsageError(
                f"engine is {quoted(given)}, expected HOST:PORT behind ray=, no URL",
                hint="start the run on a machine of the cluster",
            )
        return str(given)
    raise ValueError


def _text(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError
    return given


def _names(given: Any, option: str = "exclude") -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given or ())
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise UsageError(f"{option} has {quoted(wrong[0])}, expected names of clients")
    return names


def _trusted(given: Any) -> tuple[str, ...]:
    names = _names(given, "trust")
    hashes_of(names)
    return names


def hashes_of(names: Sequence[str]) -> dict[str, str | None]:
    """Names to the hashes that they are bound to, or None.

    Args:
        names: "NAME" or "NAME=sha256:" and 64 hexadecimal digits.

    Raises:
        UsageError: another hash, or two for one name.

    >>> hashes_of(["anna", "carl=sha256:" + 32 * "Ab"]) == {"anna": None, "carl": 32 * "ab"}
    True
    """
    found: dict[str, str | None] = {}
    for text in names:
        name, mark, digits = text.rpartition("=sha256:")
        if not mark:
            found.setdefault(text, None)
            continue
        if not re.fullmatch("[0-9a-fA-F]{64}", digits):
            raise UsageError(
                f"trust has {quoted(text)}, expected NAME=sha256: and 64 hexadecimal digits"
            )
        if (found.get(name) or digits.lower()) != digits.lower():
            raise UsageError(f"trust has two hashes for {quoted(name)}")
        found[name] = digits.lower()
    return found


def _limits(given: Any) -> Limits:
    return given if isinstance(given, Limits) else parse_limits(given or ())


def _recorded_path(value: Any) -> str | None:
    if value is None or isinstance(value, (Path, RemotePath)):
        return None if value is None else value.as_posix()
    return "(in memory)"


def one_of(values: Sequence[str], spellings: Mapping[str, str] | None = None) -> Kind:
    """One of some words, or another spelling of one, which no help shows."""
    known = spellings or {}

    def parse(given: Any) -> str:
        value = known.get(given, given) if isinstance(given, str) else given
        if value not in values:
            raise ValueError
        return str(value)

    expected = f"one of {', '.join(map(repr, values))}"
    return Kind(expected, parse, metavar=f"<{'|'.join(values)}>")


def whole(minimum: int) -> Kind:
    """A whole number."""
    expected = f"a whole number of at least {minimum}"
    return Kind(expected, lambda given: _whole(given, minimum), "N", minimum)


FLAG = Kind("True or False", _flag)
PATH = Kind("a path", parse_path, "PATH", record=_recorded_path)
WEIGHTS = Kind(
    "a path or a mapping",
    _path_or(lambda given: isinstance(given, Mapping)),
    "FILE",
    record=_recorded_path,
)
ADAPTER = Kind(
    "a path, or a state dict and a config",
    _path_or(lambda given: not isinstance(given, (str, os.PathLike, RemotePath))),
    "ADAPTER",
    record=_recorded_path,
)
RANK = Kind("auto, same, full or a number of at least 1", _rank, "auto|same|full|N")
NAME = Kind("a name", _text, "NAME")
CHECKPOINT = Kind("last, best or a checkpoint's number", _checkpoint, "last|best|N")
SHARE = Kind("a number between 0 and 1", _share, "X")
FRACTION = Kind("a number above 0, at most 1", _fraction, "X")
POSITIVE = Kind("a positive number", _positive, "SIGMA")
ENGINE = Kind("local, ray or ray=ADDRESS", _engine, "local|ray[=ADDRESS]")
ALPHA = Kind(
    "rank or a positive number",
    lambda given: given if given == "rank" else _positive(given),
    "N|rank",
)
NAMES = Kind("names of clients", _names, "NAME", repeatable=True, record=sorted)
TRUSTED = Kind("names of clients", _trusted, "NAME[=sha256:HASH]", repeatable=True, record=sorted)
LIMITS = Kind("NAME=VALUE", _limits, "NAME=VALUE", repeatable=True, record=changed_limits)
ALLOWED = Kind("a list of entries", parse_allowed, repeatable=True, record=record_allowed)
