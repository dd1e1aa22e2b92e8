"""Standard output takes one thing: which, and a report that goes there in the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clair_cli.cli.streams import BinaryOut, ClosedStream, write_out
from clair_cli.errors import UsageError
from clair_cli.pipeline_options import REPORTS, ReportFile
from clair_cli.rendered.formats import FORMATS
from clair_cli.store.address import Place

if TYPE_CHECKING:
    from clair_cli.report.model import Report


def take_reports(options: dict[str, Any], others: Mapping[str, bool]) -> str:
    """Take the report that goes to standard output out of the options, and check that it can be
    made here.

    Args:
        options: a command's, by name; `report` holds what was given, as a list or None.
        others: what else may go there, as it is given, and whether it does.

    Returns:
        Its format; "" if no report goes there.

    Raises:
        UsageError: two things go there, or the format needs what is not installed.
    """
    reports: tuple[ReportFile, ...] = REPORTS.parse(options["report"])
    options["report"] = [one for one in reports if not one.to_stdout]
    shown = [one for one in reports if one.to_stdout]
    taken = [name for name, given in others.items() if given]
    taken += [f"--report {one}" for one in shown]
    if len(taken) > 1:
        raise UsageError(
            f"{' and '.join(taken)} : standard output takes one", hint="give the other a path"
        )
    for one in shown:
        FORMATS[one.format].check()
    return shown[0].format if shown else ""


def paths_of(reports: Sequence[ReportFile]) -> list[Place]:
    """Where reports go."""
    return [one.path for one in reports]


def json_path(reports: Sequence[ReportFile]) -> str:
    """Where the JSON report goes, or ""."""
    return next((str(one.path) for one in reports if one.format == "json"), "")


def show_report(report: Report, format_: str, report_path: str | None) -> None:
    """Write a report to standard output, in its own encoding whatever the stream's is.

    Args:
        report_path: where the JSON was written, or None.

    Raises:
        OutputError: closed or full.
    """
    data = FORMATS[format_].render(report, report_path or "")
    if isinstance(sys.stdout, ClosedStream) or not hasattr(sys.stdout, "buffer"):
        write_out(data.decode("utf-8"))
    else:
        sys.stdout.flush()
        BinaryOut(lambda: None).write(data)
