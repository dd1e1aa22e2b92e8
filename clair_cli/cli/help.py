"""Commands as typer shows them, but for two things: help under headings, and errors as ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from clair_cli.cli.defaults import COMMANDS, defaults_of
from clair_cli.cli.exits import guarded
from clair_cli.cli.options import OLDER_NAMES
from clair_cli.cli.streams import write_err
from clair_cli.cli.usage import check_arguments, in_our_style
from clair_cli.settings import DECIDED_BY_REPORT, beside_verdicts, options_of
from clair_cli.store.address import place_of
from clair_cli.text import printable


class GroupedCommand(TyperCommand):
    """A command whose plain help lists its options under headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does it, after a look at slips that it takes for sense, and with defaults from
        files and the environment."""
        if ctx.resilient_parsing:  # a shell completes a line that is not whole
            return super().parse_args(ctx, args)
        given = check_arguments(self, ctx, args)
        declared = options_of(self.name or "").items()
        others = {n: o.default for n, o in declared if not o.on_command_line}
        if given and given.get("clients") and self.name in COMMANDS:
            config = given.get("config")
            with guarded():
                found = defaults_of(
                    self.name, place_of(given["clients"]), Path(config) if config else None,
                    os.environ,
                )  # fmt: skip
                ctx.default_map = dict(found.values)
                if given.get("verdicts"):
                    _leave_to_report(given, ctx.default_map)
                others |= {n: ctx.default_map[n] for n in others.keys() & ctx.default_map}
                if not given.get("quiet"):
                    write_err("".join(f"note: {printable(text)}\n" for text in found.notes))
        rest = super().parse_args(ctx, args)
        ctx.params.update(others)
        return rest

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


def _leave_to_report(given: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse flags that the report of `--verdicts` decides; such values of a file were for the run
    that wrote it."""
    for name in DECIDED_BY_REPORT:
        if name in given:
            raise beside_verdicts(name)
        defaults.pop(name, None)


def _without_older(names: str) -> str:
    for older in OLDER_NAMES:
        names = names.replace(f", {older}", "")
    return names


class OurGroup(TyperGroup):
    """Commands whose usage errors look like all others."""

    def make_context(self, *args: Any, **settings: Any) -> Any:
        """As typer does it."""
        with in_our_style():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        """As typer does it; errors of the command named come by here."""
        with in_our_style():
            return super().invoke(ctx)
