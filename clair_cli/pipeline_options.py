"""The options that pipelines act on, `--report` and `--fail-on`: their values and their check.

Opens nothing, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any

from clair_cli.errors import UsageError
from clair_cli.option import Kind
from clair_cli.store.address import Place, RemotePath, parse_path
from clair_cli.text import quoted

FAIL_LEVELS = ("warning", "suspicious", "minority", "contaminated")
"""From strict to mild: each trips on what it names and on what stands behind it."""
_FAIL_WORDS = ("never", *FAIL_LEVELS, "rejected")


def _fail_on(given: Any) -> tuple[str, ...]:
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    return tuple(_fail_level(one) for one in several) or ("never",)


def _recorded_levels(levels: Any) -> object:
    """One as it is, several as a sorted list."""
    found = sorted(set(_fail_on(levels)))
    return found[0] if len(found) == 1 else found


def _fail_level(given: Any) -> str:
    """A word, a number of clients of at least 1, or a percentage above 0 and at most 100."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str):
        raise ValueError
    if given in _FAIL_WORDS or re.fullmatch("0*[1-9][0-9]{0,8}", given, re.ASCII):
        return given
    share = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", given, re.ASCII)
    if share is not None and 0 < Fraction(given[:-1]) <= 100:
        return given
    raise ValueError


def at_least(level: str, bad: int, clients: int) -> bool:
    """Whether `bad` of so many clients are as many as a level "N" or "N%" says, or more.

    >>> at_least("2", 2, 9), at_least("25%", 2, 8), at_least("25%", 2, 9)
    (True, True, False)
    """
    if level.endswith("%"):
        return bad > 0 and bad * 100 >= Fraction(level[:-1]) * clients
    return bad >= int(level)


FAIL_ON = Kind(
    f"one of {', '.join(map(repr, _FAIL_WORDS))}, a number of clients such as 2, or a share of them"
    " such as 10%",
    _fail_on,
    "LEVEL|N|N%",
    repeatable=True,
    record=_recorded_levels,
)

REPORT_FORMATS = ("json", "html", "markdown", "sarif", "junit", "codequality")
"""What a report can be written as; `clair_cli.rendered.formats` has how."""


@dataclass(frozen=True)
class ReportFile:
    """Where a report goes, and as what.

    Attributes:
        format: one of `REPORT_FORMATS`.
        path: of a file; "-" for standard output, on the command line only.
    """

    format: str
    path: Place

    @property
    def to_stdout(self) -> bool:
        return str(self.path) == "-"

    def __str__(self) -> str:
        """As it is given: `--report` and this."""
        shown = self.path.as_posix()
        return shown if self.format == "json" else f"{self.format}={shown}"


def _reports(given: Any) -> tuple[ReportFile, ...]:
    """Of one path or text, several, or a mapping of formats to paths.

    Raises:
        UsageError: an empty path, a format that is none, or one that is given twice.
        ValueError: something else.
    """
    if isinstance(given, Mapping):
        found = [ReportFile(_known(format_), parse_path(path)) for format_, path in given.items()]
    else:
        several = given if isinstance(given, (list, tuple)) else [given]
        found = [_report(one) for one in several if one is not None]
    formats = [one.format for one in found]
    for name in formats:
        if formats.count(name) > 1:
            raise UsageError(f"report names two files for {name}", hint="give one of each format")
    return tuple(found)


def _report(given: Any) -> ReportFile:
    """A path is for JSON, whatever its name; a text may begin with a format and "="."""
    if isinstance(given, ReportFile):
        return given
    named = re.fullmatch("([A-Za-z][A-Za-z0-9_-]*)=(.*)", given, re.DOTALL) if isinstance(
        given, str) else None  # fmt: skip
    if named is None:
        return ReportFile("json", parse_path(given))
    return ReportFile(_known(named[1]), parse_path(named[2]))


def report_under(folder: Path, given: str) -> str:
    """A value of `--report` from a file of options, its path as seen from that file's folder.

    >>> report_under(Path("ci"), "junit=out/j.xml"), report_under(Path("ci"), "markdown=-")
    ('junit=ci/out/j.xml', 'markdown=-')
    >>> report_under(Path("ci"), "./a=b")
    'ci/a=b'
    """
    one = _report(given)
    if one.to_stdout or isinstance(one.path, RemotePath):
        return given
    path = (folder / one.path).as_posix()
    return path if one.format == "json" and "/" in path else f"{one.format}={path}"


def _known(name: Any) -> str:
    """A format's name, in small letters."""
    if not isinstance(name, str):
        raise ValueError
    if name.lower() in REPORT_FORMATS:
        return name.lower()
    close = get_close_matches(name.lower(), REPORT_FORMATS, n=1)
    raise UsageError(
        f"a report can't be written as {quoted(name)}, only as {', '.join(REPORT_FORMATS)}",
        hint=f"did you mean {close[0]}?" if close else "a file of such a name is given as ./NAME",
    )


REPORTS = Kind("[FORMAT=]PATH", _reports, "[FORMAT=]PATH", repeatable=True)
