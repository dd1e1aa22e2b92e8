"""The commands that draw a report: `clair report` and `clair plot`. They import no torch, and
what they draw with only when they draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clair_cli.cli.exits import guarded
from clair_cli.cli.help import GroupedCommand
from clair_cli.cli.options import local, path
from clair_cli.cli.paths import check_exists, check_not_stdout
from clair_cli.cli.streams import BinaryOut, check_binary_stdout, write_err
from clair_cli.errors import OutputError, UsageError
from clair_cli.option import OUTPUT
from clair_cli.output.targets import check_target
from clair_cli.text import printable, quoted

Given = Annotated[
    Any,
    typer.Argument(
        metavar="REPORT",
        parser=path,
        show_default=False,
        help="The JSON report of clair merge, inspect or refine.",
    ),
]
Page = Annotated[
    Path,
    typer.Option(
        "-o", "--output", rich_help_panel=OUTPUT, metavar="PAGE", parser=local, show_default=False,
        help="Where the page goes, such as report.html; - for standard output.",
    ),
]  # fmt: skip
Figures = Annotated[
    Path,
    typer.Option(
        "-o", "--output", rich_help_panel=OUTPUT, metavar="DIR", parser=local, show_default=False,
        help="Folder for the figures; it is made if it is not there.",
    ),
]  # fmt: skip
Force = Annotated[
    bool,
    typer.Option(
        "-f", "--force", rich_help_panel=OUTPUT, help="Replace an output that already exists."
    ),
]


def report(report: Given, output: Page, *, force: Force = False) -> None:
    """Show a report as one page for a browser.

    The page is one file that needs no network: the verdicts, why and how sure, what
    to do next, and pictures. Needs the extra html: pip install 'clair-cli[html]'.
    """
    with guarded() as run:
        from clair_cli.output.publish import Output, publish
        from clair_cli.rendered.formats import FORMATS
        from clair_cli.report.load import load_report

        page = FORMATS["html"]
        page.check()
        check_exists(report, "REPORT")
        to_stdout = str(output) == "-"
        if to_stdout:
            check_binary_stdout([report])
        else:
            check_target(output, force=force, kind="file", inputs=[report])
        content = page.render(load_report(report), report.as_posix())
        if to_stdout:
            BinaryOut(run.begin_stream).write(content)
        else:
            publish([Output(output, content, force)])
        run.finished = True
        if not to_stdout:
            write_err(f"page in {printable(str(output))}\n")


def plot(report: Given, output: Figures, *, force: Force = False) -> None:
    """Draw a report's pictures as SVG and PNG.

    The same as on the page of clair report. Other files in DIR stay as they are.
    Needs the extra plot: pip install 'clair-cli[plot]'.
    """
    with guarded() as run:
        from clair_cli.output.publish import Output, publish
        from clair_cli.plot import figures
        from clair_cli.report.load import load_report

        figures.check_available()
        check_exists(report, "REPORT")
        check_not_stdout("-o", output)
        if output.exists() and not output.is_dir():
            raise OutputError(f"output {quoted(output.as_posix())} is no folder")
        if not output.exists():
            check_target(output, force=False, kind="folder", inputs=[report])
        drawn = figures.render(load_report(report))
        if not drawn:
            raise UsageError(
                f"report {quoted(report.as_posix())} has nothing to draw: nothing was compared"
            )
        output.mkdir(exist_ok=True)
        for name in drawn:
            check_target(output / name, force=force, kind="file", inputs=[report])
        publish([Output(output / name, content, force) for name, content in drawn.items()])
        run.finished = True
        count = len(drawn) // len(figures.FORMATS)
        what = f"{count} picture{'s'[: count > 1]}, each as {' and '.join(figures.FORMATS)}"
        write_err(f"{what}, in {printable(str(output))}\n")


COMMANDS: tuple[Callable[..., None], ...] = (report, plot)


def add_to(app: typer.Typer, **settings: Any) -> None:
    """Give the commands of this file to the program."""
    for command in COMMANDS:
        app.command(cls=GroupedCommand, **settings)(command)
