"""Commands as typer shows them, but for two things: help under headings, and escaped errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from clair_cli.cli.options import OLDER_NAMES
from clair_cli.text import printable

_UsageError: Any = typer.BadParameter.__bases__[0]  # wherever this typer keeps it


class GroupedCommand(TyperCommand):
    """A command whose plain help lists its options under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading, in order of first use; the rest comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                record = (_without_older(record[0]), record[1])
                heading = getattr(param, "rich_help_panel", None) or "Other"
                sections.setdefault("Arguments" if argument else heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _without_older(names: str) -> str:
    for older in OLDER_NAMES:
        names = names.replace(f", {older}", "")
    return names


class EscapingGroup(TyperGroup):
    """Commands whose usage errors show what was given with control and bidi characters escaped.

    What stands on a command line may come from a stranger: a script passes on a folder's names.
    """

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """As typer does it."""
        with _escaped():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """As typer does it; errors of the command named come by here."""
        with _escaped():
            return super().invoke(ctx)


@contextmanager
def _escaped() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # it carries the help, in many lines
            text = printable(error.format_message())
            error.format_message = lambda: text
        raise
