"""What `--report FORMAT=PATH` can write: each form's name, who makes it, and what that needs.

A new form is a line in `FORMATS`, a name in `REPORT_FORMATS` (clair_cli/pipeline_options.py), and a
function from a report to bytes, to which tests/rendered/test_hostile.py sends hostile names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from clair_cli.errors import UsageError

if TYPE_CHECKING:
    from clair_cli.report.model import Report


@dataclass(frozen=True)
class ReportFormat:
    """A form of the report.

    Attributes:
        where: module and function, `"package.module:function"`, imported on first use: from a
            report to the bytes of a file, the same for the same report.
        shows_path: whether the function takes `report_path` too, for commands to copy.
        needs: top-level names of the modules that are imported for it, and that a plain
            installation may lack.
        extra: the extra of clair-cli that brings them; "" if none is needed.
    """

    name: str
    where: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    shows_path: bool = False

    def check(self) -> None:
        """Refuse a form that can't be made here, before any work is done.

        Raises:
            UsageError: with the command to install what is missing.
        """
        missing = [name for name in (self.where.partition(":")[0], *self.needs) if not _there(name)]
        if missing:
            raise UsageError(
                f"a report as {self.name} needs {missing[-1]}, which is not installed",
                hint=f"pip install 'clair-cli[{self.extra}]'" if self.extra else "",
            )

    def render(self, report: Report, report_path: str = "") -> bytes:
        """The report in this form.

        Args:
            report_path: where its JSON is, as the user would type it, or "".
        """
        module, _, function = self.where.partition(":")
        make = cast("Callable[..., bytes]", getattr(import_module(module), function))
        return make(report, report_path=report_path) if self.shows_path else make(report)


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it lies in is not there either
        return False


def as_json(report: Report) -> bytes:
    """`clair.report/2` itself."""
    from clair_cli.report.encode import report_json

    return report_json(report).encode("utf-8")


FORMATS = {
    one.name: one
    for one in (
        ReportFormat("json", "clair_cli.rendered.formats:as_json"),
        ReportFormat("html", "clair_cli.html.page:render", ("jinja2",), "html"),
        ReportFormat("markdown", "clair_cli.rendered.markdown:render", shows_path=True),
        ReportFormat("sarif", "clair_cli.rendered.sarif:render"),
        ReportFormat("junit", "clair_cli.rendered.junit:render"),
        ReportFormat("codequality", "clair_cli.rendered.codequality:render"),
    )
}
