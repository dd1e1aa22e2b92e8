"""The options of the commands: names, words of help, and what values they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clair_cli.errors import UsageError
from clair_cli.formats.limits import parse_limits
from clair_cli.settings import DTYPES, MODULES, SPELLINGS

OUTPUT = "Output"
JUDGING = "Judging"
READING = "Reading"
RUNNING = "Running"
OLDER_NAMES = ("--output-format",)  # still taken, and left out of the help


def path(text: str) -> Path:
    """A path; help shows this function's name. An empty one would mean the folder one is in."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


def parse_rank(text: str) -> str | int:
    """`auto`, `same`, `full` or a positive whole number."""
    if text in ("auto", "same", "full"):
        return text
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not auto, same, full or a number of at least 1")


def parse_error_target(text: str) -> float:
    """A number above 0 and below 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise typer.BadParameter(f"{text!r} is not a number between 0 and 1")
    return value


def parse_alpha(text: str) -> str | float:
    """`rank` or a positive number."""
    return text if text == "rank" else _positive(text, "rank or ")


def parse_noise(text: str) -> float:
    """A positive number."""
    return _positive(text, "")


def parse_limit(text: str) -> str:
    """`NAME=VALUE`, checked and handed on as it is."""
    try:
        parse_limits([text])
    except UsageError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise typer.BadParameter(f"{error.message.removeprefix('--limit: ')}{hint}") from None
    return text


def _positive(text: str, or_else: str) -> float:
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{text!r} is not {or_else}a positive number")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def one_of(values: Sequence[str], spellings: Mapping[str, str]) -> dict[str, Any]:
    """How an option takes one of `values`, or another spelling of one, which no help shows."""

    def parse(text: str) -> str:
        value = spellings.get(text, text)
        if value not in values:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, values))}")
        return value

    return {"metavar": f"<{'|'.join(values)}>", "parser": parse}


def option(*names: str, panel: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


Clients = Annotated[
    Path,
    typer.Argument(
        metavar="CLIENTS",
        parser=path,
        show_default=False,
        help="Folder with one adapter per client: PEFT folders, NAME.safetensors files, or both.",
    ),
]

# Output
Output = Annotated[
    Path,
    option(
        "-o",
        "--output",
        panel=OUTPUT,
        metavar="OUT",
        parser=path,
        show_default=False,
        help="Where the merged adapter goes: one file if OUT ends in .safetensors, else a folder;"
        " - for standard output.",
    ),
]
OutputFolder = Annotated[
    Path,
    option(
        "-o",
        "--output",
        panel=OUTPUT,
        metavar="DIR",
        parser=path,
        show_default=False,
        help="Folder for one refined adapter folder per benign client.",
    ),
]
OutputReport = Annotated[
    Path | None,
    option(
        "-o",
        "--output",
        panel=OUTPUT,
        metavar="PATH",
        parser=path,
        help="Also write the JSON report there; with - the report goes to stdout and the table to"
        " stderr.",
    ),
]
ReportPath = Annotated[
    Path | None,
    option(
        "--report",
        panel=OUTPUT,
        metavar="PATH",
        parser=path,
        help="Where the JSON report goes, if not beside the output.",
    ),
]
Json = Annotated[
    bool, option("--json", panel=OUTPUT, help="Stdout gets the report, one JSON document.")
]
Format = Annotated[Literal["table", "json"], option("--format", panel=OUTPUT, hidden=True)]
Rank = Annotated[
    Any,
    option(
        "--rank",
        panel=OUTPUT,
        metavar="auto|same|full|N",
        parser=parse_rank,
        help="Rank to write: the smallest serving rank (8, 16, 32 and so on) that meets"
        " --error-target, the clients' most common one, one that loses nothing, or N.",
    ),
]
ErrorTarget = Annotated[
    Any,
    option(
        "--error-target",
        panel=OUTPUT,
        metavar="X",
        parser=parse_error_target,
        help="Largest relative error that --rank auto accepts.",
    ),
]
KeepAlpha = Annotated[
    bool,
    option("--keep-alpha", panel=OUTPUT, help="Write the clients' alpha instead of alpha = rank."),
]
Dtype = Annotated[
    str,
    option(
        "--dtype",
        panel=OUTPUT,
        help="Type of the numbers written.",
        **one_of(DTYPES, SPELLINGS["dtype"]),
    ),
]
TensorNames = Annotated[
    Literal["auto", "peft", "diffusers", "kohya"],
    option(
        "--tensor-names",
        *OLDER_NAMES,
        panel=OUTPUT,
        help="Tensor names to write: what most clients have, or one of these.",
    ),
]
Force = Annotated[
    bool, option("-f", "--force", panel=OUTPUT, help="Replace an output that already exists.")
]
Quiet = Annotated[
    bool, option("-q", "--quiet", panel=OUTPUT, help="Print only the last line, and errors.")
]

Verified = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        parser=path,
        show_default=False,
        help="What clair merge or clair refine wrote: a file or a folder.",
    ),
]
VerifiedClients = Annotated[
    Path | None,
    typer.Argument(
        metavar="CLIENTS",
        parser=path,
        show_default=False,
        help="The clients, to merge or refine them again with the options in the report.",
    ),
]
VerifiedReport = Annotated[
    Path | None,
    option(
        "--report",
        panel=READING,
        metavar="PATH",
        parser=path,
        show_default=False,
        help="The JSON report. Default: beside a file, or in a folder.",
    ),
]

# Judging
Weights = Annotated[
    Path | None,
    option(
        "--weights",
        panel=JUDGING,
        metavar="FILE",
        parser=path,
        help="JSON object or two-column CSV of client name to positive number, such as sample"
        " counts. Default: all equal.",
    ),
]
MinClients = Annotated[
    int,
    option(
        "--min-clients",
        panel=JUDGING,
        metavar="N",
        min=1,
        help="Fewest comparable clients to judge.",
    ),
]
AllowUndetermined = Annotated[
    bool,
    option(
        "--allow-undetermined",
        panel=JUDGING,
        help="Without a verdict, go on with everybody not rejected (exit 0 instead of 5).",
    ),
]
FailOn = Annotated[
    Literal["never", "suspicious", "contaminated"],
    option(
        "--fail-on",
        panel=JUDGING,
        help="Exit 3, and write no adapter, from this verdict on.",
    ),
]
FailOnInspect = Annotated[
    Literal["never", "suspicious", "contaminated"],
    option(
        "--fail-on",
        panel=JUDGING,
        help="Exit 3 from this verdict on; a rejected client trips it too.",
    ),
]
Strict = Annotated[
    bool, option("--strict", panel=JUDGING, help="Exit 4 if any client is rejected.")
]
Noise = Annotated[
    Any,
    option(
        "--noise",
        panel=JUDGING,
        metavar="SIGMA",
        parser=parse_noise,
        show_default=False,
        help="Standard deviation of the noise per entry of a delta weight, if known. Default:"
        " estimated where the data allow it.",
    ),
]

# Reading
Previous = Annotated[
    Path | None,
    option(
        "--previous",
        panel=READING,
        metavar="ADAPTER",
        parser=path,
        help="The adapter that all clients started this round from.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", panel=READING, metavar="NAME", help="Leave a client out; repeatable."),
]
Modules = Annotated[
    str,
    option(
        "--modules",
        panel=READING,
        **one_of(MODULES, SPELLINGS["modules"]),
        help="Which modules: those that three clients have, or half of a few; all; those that all"
        " merged clients have; or all, and reject who lacks one of the majority's. Absent counts as"
        " no update.",
    ),
]
AssumeAlpha = Annotated[
    Any,
    option(
        "--assume-alpha",
        panel=READING,
        metavar="N|rank",
        parser=parse_alpha,
        show_default=False,
        help="lora_alpha for clients without a config; without it they are rejected.",
    ),
]
LimitOption = Annotated[
    list[Any] | None,
    option(
        "--limit",
        panel=READING,
        metavar="NAME=VALUE",
        parser=parse_limit,
        help="Raise or lower a limit on the input; repeatable. Defaults: clients=1000,"
        " file=4G, total=64G, header=8M, tensors=20000, rank=1024, work=8 (x the median client's).",
    ),
]


Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    option("--device", panel=RUNNING, help="Where to compute."),
]
Threads = Annotated[
    int | None,
    option(
        "--threads",
        panel=RUNNING,
        metavar="N",
        min=1,
        show_default=False,
        help="Modules worked on at once; default: one per core. The results are the same.",
    ),
]
Timings = Annotated[
    bool,
    option("--timings", panel=RUNNING, help="Say on stderr where the time went."),
]
Color = Annotated[
    Literal["auto", "always", "never"],
    option("--color", panel=RUNNING, help="Colours; auto: at a terminal, without NO_COLOR."),
]
