"""The commands that draw a report: `clair report`. They read one file, and import no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clair_cli.cli.exits import guarded
from clair_cli.cli.help import GroupedCommand
from clair_cli.cli.options import path
from clair_cli.cli.paths import check_exists
from clair_cli.cli.streams import BinaryOut, check_binary_stdout, write_err
from clair_cli.html.page import check_available, render
from clair_cli.option import OUTPUT
from clair_cli.output.publish import Output, publish
from clair_cli.output.targets import check_target
from clair_cli.report.load import load_report
from clair_cli.text import printable

Given = Annotated[
    Path,
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
        "-o", "--output", rich_help_panel=OUTPUT, metavar="PAGE", parser=path, show_default=False,
        help="Where the page goes, such as report.html; - for standard output.",
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
        check_available()
        check_exists(report, "REPORT")
        to_stdout = str(output) == "-"
        if to_stdout:
            check_binary_stdout([report])
        else:
            check_target(output, force=force, kind="file", inputs=[report])
        page = render(load_report(report))
        if to_stdout:
            BinaryOut(run.begin_stream).write(page)
        else:
            publish([Output(output, page, force)])
        run.finished = True
        if not to_stdout:
            write_err(f"page in {printable(str(output))}\n")


COMMANDS: tuple[Callable[..., None], ...] = (report,)


def add_to(app: typer.Typer, **settings: Any) -> None:
    """Give the commands of this file to the program."""
    for command in COMMANDS:
        app.command(cls=GroupedCommand, **settings)(command)
