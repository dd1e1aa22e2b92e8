"""What `--report FORMAT=PATH` can write: each form's name, who makes it, and what that needs.

A new form is a line in `FORMATS`, a name in `REPORT_FORMATS` (clair_cli/pipeline_options.py), and a
function from a report to bytes, to which tests/rendered/test_hostile.py sends hostile names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from clair_cli.extras import check_installed

if TYPE_CHECKING:
    from clair_cli.report.model import Report


@dataclass(frozen=True)
class ReportFormat:
    """A form of the report.

    Attributes:
        where: module and function, `"package.module:function"`, imported on first use: from a
            report to the bytes of a file, the same for the same report.
        shows_path: whether the function takes `report_path` too, for commands to copy.
        needs: the library that it needs and a plain installation lacks, by the name by which it is
            imported; "" for none.
        extra: the extra of clair-cli that brings it.
    """

    name: str
    where: str
    needs: str = ""
    extra: str = ""
    shows_path: bool = False

    def check(self) -> None:
        """Refuse a form that can't be made here, before any work is done.

        Raises:
            UsageError: with the command to install what is missing.
        """
        if self.needs:
            check_installed(f"a report as {self.name}", self.needs, self.extra)

    def render(self, report: Report, report_path: str = "") -> bytes:
        """The report in this form.

        Args:
            report_path: where its JSON is, as the user would type it, or "".
        """
        module, _, function = self.where.partition(":")
        make = cast("Callable[..., bytes]", getattr(import_module(module), function))
        return make(report, report_path=report_path) if self.shows_path else make(report)


def as_json(report: Report) -> bytes:
    """`clair.report/2` itself."""
    from clair_cli.report.encode import report_json

    return report_json(report).encode("utf-8")


FORMATS = {
    one.name: one
    for one in (
        ReportFormat("json", "clair_cli.rendered.formats:as_json"),
        ReportFormat("html", "clair_cli.html.page:render", "jinja2", "html", shows_path=True),
        ReportFormat("markdown", "clair_cli.rendered.markdown:render", shows_path=True),
        ReportFormat("sarif", "clair_cli.rendered.sarif:render"),
        ReportFormat("junit", "clair_cli.rendered.junit:render"),
        ReportFormat("codequality", "clair_cli.rendered.codequality:render"),
    )
}
