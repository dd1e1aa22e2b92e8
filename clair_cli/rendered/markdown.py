"""A report as GitHub-flavoured Markdown, for job summaries and comments.

Every word of a stranger is text and nothing else: all characters that Markdown or HTML gives a
meaning to are written as character references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from clair_cli.rendered.findings import headline, outcome_text
from clair_cli.report.model import VERDICTS, ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.reasons import explain_client
from clair_cli.words.steps import Step, next_steps
from clair_cli.words.sure import power_words

MAX_BYTES = 1_000_000
"""A job summary on GitHub is dropped from 1 MiB on."""
_MAX_CELL = 2000  # characters of a reason in the table, before they are escaped
_STEPS_SHARE = 3  # the next steps may take this part of the room: 1 / 3

# What means something in a line of Markdown: a colon before a letter or a slash only (addresses and
# emoji), a dot behind "www" only. At the start of a block spaces, bullets and numbers do too.
_MEANS = re.compile(r"[\\`*_{}\[\]<>#!|~@&$^=]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
_BEGUN = re.compile(r"\s*(?:[-+]|\d+[.)](?=\s|$))?")
_BEGINS = re.compile(r"\s+|[-+]|(?<=\d)[.)]")


def render(report: Report, limit: int = MAX_BYTES, *, report_path: str = "") -> bytes:
    """The report as Markdown.

    Args:
        report_path: where the JSON is, as the user would type it, or "".
        limit: most bytes; rows and remarks that don't fit are counted instead. At least 10,000 are
            taken, if there is as much to say.
    """
    room = max(limit, 10_000) - 2_000  # for the lines that say how much was left out
    lines = [f"## clair {report.command}: {text(headline(report))}", ""]
    if report.cohort.outcome != "judged":
        lines += [text(outcome_text(report)), ""]
    lines += [*_result(report), ""]
    steps = _fitting(_steps(report, report_path), room // _STEPS_SHARE, "next steps")
    left = room - _size(lines) - _size(steps)
    rows = [_row(client, report) for client in _worst_first(report)]
    table = ["| client | verdict | sure | weight | why |", "| --- | --- | --- | ---: | --- |"]
    remarks = [f"- {remark.class_}: {text(remark.text)}" for remark in report.warnings]
    said = _fitting(remarks, left // 4, "remarks")
    lines += table + _fitting(rows, left - _size(said), "clients", "| {} | | | | |")
    lines += ["", "### Next steps", "", *steps]
    lines += ["", "### Remarks", "", *said] if said else []
    lines += ["", f"clair {text(report.version)}; the JSON report has all numbers."]
    return ("\n".join(lines) + "\n").encode("utf-8")


def text(words: str) -> str:
    """Words as text in Markdown, on one line, whatever is in them.

    >>> print(text("a|b </td> www.x.y http://z 3.14: ok"))
    a&#124;b &#60;/td&#62; www&#46;x.y http&#58;//z 3.14: ok
    >>> print(text("1. x"), text("- x"), text(" x"))
    1&#46; x &#45; x &#32;x
    """
    said = printable(words)
    begun = _BEGUN.match(said)
    end = 0 if begun is None else begun.end()
    return _BEGINS.sub(_reference, said[:end]) + _MEANS.sub(_reference, said[end:])


def _reference(found: re.Match[str]) -> str:
    return "".join(f"&#{ord(char)};" for char in found[0])


def code(words: str) -> str:
    """The same as code, in which nobody is mentioned and nothing is a link."""
    return f"<code>{text(words)}</code>"


def _worst_first(report: Report) -> list[ClientReport]:
    return [client for verdict in VERDICTS for client in report.with_verdict(verdict)]


def _row(client: ClientReport, report: Report) -> str:
    """A row of the table of clients."""
    said = "; ".join(one.short for one in explain_client(client, report))
    said = said if len(said) <= _MAX_CELL else f"{said[:_MAX_CELL]}..."
    verdict = client.verdict if client.verdict == "benign" else f"**{client.verdict}**"
    weight = f"{100 * client.weight:.1f} %" if client.weight > 0 else "0"
    cells = (code(client.name), verdict, client.sure, weight, text(said))
    return f"| {' | '.join(cells)} |"


def _result(report: Report) -> list[str]:
    """What was made, and what the round could notice."""
    lines = []
    if report.merged is not None:
        number = sum(client.weight > 0 for client in report.clients)
        error = "" if report.merged.error is None else f", error {report.merged.error:.2g}"
        where = f" into {code(report.merged.path)}" if report.merged.path else ""
        lines.append(f"Merged {number}{where}: rank {report.merged.rank}{error}.")
    elif report.refined is not None:
        where = f" into {code(report.refined.path)}" if report.refined.path else ""
        lines.append(f"Refined {len(report.refined.clients)}{where}.")
    elif report.command != "inspect":
        levels = report.options.get("fail_on")
        levels = ", ".join(map(str, levels)) if isinstance(levels, (list, tuple)) else levels
        tripped = f": --fail-on {text(str(levels))}" if report.exit_code == 3 else ""
        lines.append(f"Nothing was written{tripped} (exit code {report.exit_code}).")
    power = power_words(report)
    return [*lines, f"{text(power[:1].upper() + power[1:])}."] if power else lines


def _steps(report: Report, report_path: str) -> list[str]:
    """What to do, each with its command."""
    lines: list[str] = []
    for step in next_steps(report, report_path=report_path):
        lines.append(f"- {text(step.text)}")
        lines += [f"  - {text(detail)}" for detail in step.details]
        lines += [block for block in _command(step) if block not in lines]
    return lines


def _command(step: Step) -> list[str]:
    """A command in a block of code, in one piece so that it is kept or left out as a whole."""
    if not step.command:
        return []
    fence = "`" * (max([2, *map(len, re.findall("`+", step.command))]) + 1)
    return [f"\n  {fence}sh\n  {step.command}\n  {fence}\n"]


def _fitting(lines: list[str], room: int, what: str, row: str = "- {}") -> list[str]:
    """The first lines that take at most so many bytes, and how many more there are."""
    size = 0
    for index, line in enumerate(lines):
        size += _size([line])
        if size > room:
            return [*lines[:index], row.format(f"and {len(lines) - index:,} more {what}")]
    return lines


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode("utf-8")) + 1 for line in lines)
