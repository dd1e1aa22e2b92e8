"""`clair explain`: the command. What it imports at once is light; no torch at all."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clair_cli.cli.exits import guarded
from clair_cli.cli.options import path
from clair_cli.cli.paths import check_exists
from clair_cli.cli.streams import view_of, write_out
from clair_cli.errors import UsageError
from clair_cli.option import READING
from clair_cli.text import first_few, quoted, whole_characters

if TYPE_CHECKING:
    from clair_cli.report.model import ClientReport, Report


def explain(
    client: Annotated[
        str, typer.Argument(metavar="CLIENT", show_default=False, help="The client's name.")
    ],
    report: Annotated[
        Any,
        typer.Option(
            "--report",
            rich_help_panel=READING,
            metavar="PATH",
            parser=path,
            show_default=False,
            help="The JSON report of a merge, an inspection or a refinement.",
        ),
    ],
) -> None:
    """Say in full why one client has its verdict.

    Why, how sure, layer by layer, whom it resembles, what it does to the merge and
    what to ask it, from the report alone: nothing is judged again.
    """
    with guarded():
        check_exists(report, "--report")
        from clair_cli.cli.explained import explained
        from clair_cli.report.load import load_report

        loaded = load_report(report)
        view = view_of(sys.stdout)
        for found in clients_called(client, loaded):
            write_out(explained(found, loaded, view))


def clients_called(name: str, report: Report) -> list[ClientReport]:
    """The clients of a name: several only where names that are not Unicode are spelt alike.

    Raises:
        UsageError: there is none; with the names that are close.
    """
    spelt = whole_characters(name)
    found = [client for client in report.clients if client.name == spelt]
    if found:
        return found
    names = [client.name for client in report.clients]
    close = difflib.get_close_matches(spelt[:255], names[:10_000], n=3)
    hint = f"did you mean {' or '.join(map(quoted, close))}?" if close else ""
    raise UsageError(
        f"the report has no client {quoted(name)}",
        hint=hint or (f"its clients are {first_few(names, 10)}" if names else "it has no clients"),
    )
