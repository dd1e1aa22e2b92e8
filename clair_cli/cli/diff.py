"""`clair diff`: what changed between two rounds. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clair_cli.cli.exits import guarded
from clair_cli.cli.options import path
from clair_cli.cli.paths import check_exists
from clair_cli.cli.streams import write_out
from clair_cli.option import OUTPUT


def diff(
    first: Annotated[
        Any,
        typer.Argument(
            metavar="FIRST", parser=path, show_default=False, help="The JSON report of a round."
        ),
    ],
    second: Annotated[
        Any,
        typer.Argument(
            metavar="SECOND", parser=path, show_default=False, help="The report of a later one."
        ),
    ],
    *,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON document.")
    ] = False,
) -> None:
    """Say what changed between two rounds, client by client.

    Clients are told by their names. From the reports alone: nothing is judged again.
    """
    with guarded():
        check_exists(first, "FIRST")
        check_exists(second, "SECOND")
        from clair_cli.report.changes import changes_json, compare
        from clair_cli.report.load import load_report
        from clair_cli.words.changes import change_lines

        changes = compare(load_report(first), load_report(second))
        if json:
            write_out(changes_json(changes))
        else:
            write_out("".join(f"{line}\n" for line in change_lines(changes)))
