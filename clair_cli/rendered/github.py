"""A report for GitHub Actions: annotations as workflow commands, to be printed to stdout."""

from __future__ import annotations

from clair_cli.rendered.findings import Finding, findings
from clair_cli.report.model import Report

MAX_ANNOTATIONS = 10
"""GitHub shows so many of a step, and drops what is beyond without a word."""
_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def annotation_lines(report: Report, most: int = MAX_ANNOTATIONS) -> str:
    """The worst findings as workflow commands, a line each, at most `most`; where there are more,
    the last one says how many. "" without findings.

    In a run that goes on (exit code 0) nothing is an error.
    """
    found = findings(report)
    shown = found if len(found) <= most else found[: most - 1]
    lines = [_annotation(one, report) for one in shown]
    if len(shown) < len(found):
        more = f"{len(found) - len(shown):,} more findings: the job summary has all of them"
        lines.append(f"::notice title=clair::{data(more)}")
    return "".join(f"{line}\n" for line in lines)


def _annotation(finding: Finding, report: Report) -> str:
    level = "warning" if finding.level == "error" and report.exit_code == 0 else finding.level
    title = parameter(f"clair: {finding.title}")
    return f"::{_COMMANDS[level]} title={title}::{data(finding.text)}"


def data(text: str) -> str:
    """A message, escaped as GitHub's workflow commands have it.

    >>> data("100 %\\r\\n::error::x")
    '100 %25%0D%0A::error::x'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def parameter(text: str) -> str:
    """A property of a command, likewise.

    >>> parameter("a: b, c")
    'a%3A b%2C c'
    """
    return data(text).replace(":", "%3A").replace(",", "%2C")
