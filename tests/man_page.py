"""man/clair.1, made from the program's own help. `python -m tests.pages` writes it again."""

from __future__ import annotations

import re
from typing import Any

import typer.main

from clair_cli.cli.app import app
from clair_cli.cli.exits import EXIT_CODES
from clair_cli.cli.help import _without_older
from clair_cli.version import __version__
from tests.pages import ROOT

PAGE = ROOT / "man" / "clair.1"


def roff(text: str) -> str:
    """A text whose every character stands for itself, and whose lines are no requests."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def sections(command: Any, context: Any) -> list[str]:
    """One command: its usage, its words, its arguments and options."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f".SS {roff(context.command_path)}", f".B {roff(usage)}"]
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        whole = paragraph.startswith("\b")
        rows = [row.strip() for row in paragraph.strip("\b\n").splitlines()]
        kept = [".PP", ".nf", *map(roff, rows), ".fi"] if whole else [".PP", roff(" ".join(rows))]
        lines += kept
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", f".B {roff(_without_older(record[0]))}", roff(record[1])]
    return lines


def page() -> str:
    """The whole page; it names no day, so that the same help gives the same bytes."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("clair", ["inspect", "--help"], resilient_parsing=True)
    lines = [
        f'.TH CLAIR 1 "" "clair {__version__}" "User commands"',
        ".SH NAME", roff("clair - merge the LoRA adapters of federated clients robustly"),
        ".SH SYNOPSIS", r".B clair", r"\fICOMMAND\fR [\fIOPTION\fR]...",
        ".SH DESCRIPTION", roff(group.help or ""),
        ".SH COMMANDS",
    ]  # fmt: skip
    for name, command in group.commands.items():
        own = command.context_class(command, info_name=name, parent=context)
        lines += sections(command, own)
    lines += [".SH EXIT STATUS"]
    for code, name, text in EXIT_CODES:
        lines += [".TP", f".B {code}", roff(f"{name}: {text}")]
    lines += [
        ".SH FILES", ".TP", ".B clair.toml", "Options, in the working folder.",
        ".TP", ".B pyproject.toml", roff("The same, in [tool.clair]."),
        ".SH ENVIRONMENT", ".TP", r".B CLAIR_\fIOPTION\fR",
        "An option that the command line does not give.",
        ".TP", ".B NO_COLOR, FORCE_COLOR", "Whether to use colours.",
        ".TP", ".B CLAIR_DEBUG", "1 shows tracebacks.",
    ]  # fmt: skip
    return "\n".join(line for line in lines if line) + "\n"
