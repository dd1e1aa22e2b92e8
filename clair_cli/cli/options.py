"""The options as the command line's parameters.

Those of `clair_cli.settings` are made from their declarations; here are the arguments, and the
options that only the command line has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from clair_cli.errors import UsageError
from clair_cli.option import FLAG, OUTPUT, READING, RUNNING, Kind, Option, one_of
from clair_cli.settings import CONVERTIBLE, OPTIONS, options_of
from clair_cli.store.address import Place, RemotePath, parse_path
from clair_cli.text import quoted


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


OLDER_NAMES = tuple(_flag(option.older) for option in OPTIONS.values() if option.older)
"""Names of options that are still taken, and left out of the help."""

Command = TypeVar("Command", bound=Callable[..., None])


def with_options(command: Command) -> Command:
    """Give a command the options of `clair_cli.settings` in place of its `**options`.

    They stand behind the command's own parameters, and before its keyword-only ones.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    declared = [
        _parameter(name, option, command.__name__)
        for name, option in options_of(command.__name__).items()
        if option.on_command_line
    ]
    before = [p for p in own if p.kind != p.KEYWORD_ONLY]
    behind = [p for p in own if p.kind == p.KEYWORD_ONLY]
    vars(command)["__signature__"] = signature.replace(parameters=[*before, *declared, *behind])
    return command


def _parameter(name: str, option: Option, command: str) -> inspect.Parameter:
    """One option for typer."""
    default, help_ = option.default_and_help(command)
    kind, names = option.kind, [option.short, _flag(name), option.older and _flag(option.older)]
    settings: dict[str, Any] = {"help": help_, "rich_help_panel": option.panel}
    type_: Any = Any
    if kind is FLAG:
        type_ = bool
    elif kind.minimum is not None:
        type_ = int | None if default is None else int
        settings |= {"metavar": kind.metavar, "min": kind.minimum}
    elif kind.repeatable:
        type_, default = list[Any] | None, None
        settings |= {"metavar": kind.metavar, "parser": _parser_of_one(kind)}
    else:
        settings |= {"metavar": kind.metavar, "parser": _parser(kind)}
    declared = Annotated[type_, typer.Option(*filter(None, names), **settings)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=declared
    )


def _parser(kind: Kind) -> Callable[[Any], Any]:
    """The check of a text for typer, with a message that fits its others."""

    def parse(given: Any) -> Any:
        try:
            return kind.parse(given)
        except ValueError:
            shown = given[0] if isinstance(given, list) else given
            raise typer.BadParameter(f"{shown!r} is not {kind.expected}") from None
        except UsageError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise typer.BadParameter(f"{error.message.removeprefix('--limit: ')}{hint}") from None

    return parse


def _parser_of_one(kind: Kind) -> Callable[[str], str]:
    """The same for one of several texts, which is handed on as it is."""
    parse = _parser(kind)

    def parse_one(given: str) -> str:
        parse([given])
        return given

    return parse_one


def path(text: str) -> Place:
    """A path or an address; help shows this function's name."""
    try:
        return parse_path(text)
    except UsageError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise typer.BadParameter(f"{error.message}{hint}") from None


def local(text: str) -> Path:
    """A path on this machine."""
    found = path(text)
    if isinstance(found, RemotePath):
        raise typer.BadParameter(f"{quoted(str(found))} is an address, expected a path")
    return found


# Arguments, and where results go. Their type is Any where a `Place` may be given: typer knows no
# unions.


def _argument(metavar: str, help_: str) -> Any:
    return typer.Argument(metavar=metavar, parser=path, show_default=False, help=help_)


def _output(metavar: str, help_: str) -> Any:
    return typer.Option(
        "-o", "--output", rich_help_panel=OUTPUT, metavar=metavar, parser=path,
        show_default=False, help=help_,
    )  # fmt: skip


Clients = Annotated[
    Any,
    _argument(
        "CLIENTS",
        "Folder with one adapter per client: PEFT folders, NAME.safetensors files, or both; or the"
        " address of such a folder, as s3://BUCKET/KEY.",
    ),
]
Output = Annotated[
    Any,
    _output(
        "OUT",
        "Where the merged adapter goes: one file if OUT ends in .safetensors, else a folder;"
        " - for standard output.",
    ),
]
OutputFolder = Annotated[
    Any, _output("DIR", "Folder for one refined adapter folder per benign client.")
]
OutputReport = Annotated[
    Any,
    _output(
        "PATH",
        "Also write the JSON report there; with - the report goes to stdout and the table to"
        " stderr.",
    ),
]
Verified = Annotated[
    Any, _argument("OUT", "What clair merge or clair refine wrote: a file or a folder.")
]
VerifiedClients = Annotated[
    Any,
    _argument(
        "CLIENTS", "The clients, to merge or refine them again with the options in the report."
    ),
]
Converted = Annotated[
    Any,
    _argument("SRC", "The adapter: a folder, or a .safetensors file with its config beside it."),
]
ConvertedOutput = Annotated[
    Any, _output("DST", "Where it goes: one file if DST ends in .safetensors, else a folder.")
]
_FORMATS = one_of(CONVERTIBLE)
ConvertedNames = Annotated[
    Any,
    typer.Option(
        "--tensor-names",
        rich_help_panel=OUTPUT,
        metavar=_FORMATS.metavar,
        parser=_parser(_FORMATS),
        show_default=False,
        help="The format to write.",
    ),
]
VerifiedReport = Annotated[
    Any,
    typer.Option(
        "--report",
        rich_help_panel=READING,
        metavar="PATH",
        parser=path,
        show_default=False,
        help="The JSON report. Default: beside a file, or in a folder.",
    ),
]

# Of the command line alone

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        rich_help_panel=READING,
        metavar="FILE",
        parser=local,
        show_default=False,
        help="TOML file of options. Default: clair.toml, or [tool.clair] in pyproject.toml.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=OUTPUT, help="Stdout gets the report, one JSON document."
    ),
]
Format = Annotated[
    Literal["table", "json"], typer.Option("--format", rich_help_panel=OUTPUT, hidden=True)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        rich_help_panel=OUTPUT,
        help="Print only warnings, the last line, and errors.",
    ),
]
Github = Annotated[
    bool,
    typer.Option(
        "--github",
        rich_help_panel=OUTPUT,
        help="In a job of GitHub Actions: also write the job's summary, and print at most 10"
        " annotations to stdout.",
    ),
]
Timings = Annotated[
    bool,
    typer.Option("--timings", rich_help_panel=RUNNING, help="Say on stderr where the time went."),
]
Color = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(
        "--color",
        rich_help_panel=RUNNING,
        help="Colours; auto: at a terminal, without NO_COLOR.",
    ),
]
