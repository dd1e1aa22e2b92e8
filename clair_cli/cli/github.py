"""`--github`: what a job of GitHub Actions shows of a run, its summary and annotations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.cli.streams import write_err, write_out
from clair_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from clair_cli.report.model import Report

_VARIABLE = "GITHUB_STEP_SUMMARY"
_MOST = 2**20  # bytes of a step's summary; GitHub drops a larger one as a whole
_LEAST = 16_000  # bytes that are worth a summary


def summary_file() -> Path:
    """Where the job's summary goes.

    Raises:
        UsageError: this is no job of GitHub Actions, or the file can't be there.
    """
    given = os.environ.get(_VARIABLE, "")
    if not given:
        raise UsageError(
            f"--github : {_VARIABLE} is not set, as it is in a job of GitHub Actions",
            hint="elsewhere give --report markdown=PATH",
        )
    path = Path(given)
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise UsageError(f"--github : {_VARIABLE} {given!r} is no file")
    return path


def tell_github(report: Report, summary: Path, report_path: str | None) -> None:
    """Print the annotations, and add the report to the summary, which stays below GitHub's limit.

    Args:
        report_path: where the JSON was written, or None.

    Raises:
        OutputError: stdout or the summary can't be written.
    """
    from clair_cli.rendered import markdown
    from clair_cli.rendered.github import annotation_lines

    write_out(annotation_lines(report))
    try:
        room = _MOST - (summary.stat().st_size if summary.exists() else 0) - 1
        if room < _LEAST:
            write_err("note: the job summary is full, and nothing was added to it\n")
            return
        limit = min(room, markdown.MAX_BYTES)
        data = markdown.render(report, limit, report_path=report_path or "")
        with open(summary, "ab") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(
            f"the job summary was not written: {error.strerror}; the results are in place"
        ) from None
