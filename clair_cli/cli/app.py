"""The command line: options in, exit code out. All work is in `clair_cli.api`.

Nothing here imports torch or numpy: help, usage errors and wrong paths answer at once. A command's
`**options` are those that `clair_cli.settings` declares for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from clair_cli.cli import options as opt
from clair_cli.cli import pictures
from clair_cli.cli.completion import VARIABLE, completion, prepare_to_answer
from clair_cli.cli.diff import diff
from clair_cli.cli.exits import (
    EXIT_CODES,
    Stopped,
    error_text,
    guarded,
    raise_on_signals,
    show_warning,
    stoppable,
)
from clair_cli.cli.explain import explain
from clair_cli.cli.github import summary_file, tell_github
from clair_cli.cli.help import GroupedCommand, OurGroup
from clair_cli.cli.paths import check_exists, check_inputs, check_not_stdout, paths_read
from clair_cli.cli.progress import watched
from clair_cli.cli.schema import schema
from clair_cli.cli.stdout import json_path, paths_of, show_report, take_reports
from clair_cli.cli.streams import (
    BinaryOut,
    ask_for_colour,
    check_binary_stdout,
    discard,
    prepare_streams,
    view_of,
    write_err,
    write_out,
)
from clair_cli.engine.own_process import claim
from clair_cli.errors import OutputError
from clair_cli.output.temporary import leftovers
from clair_cli.settings import make_settings
from clair_cli.store.address import Place, place_of
from clair_cli.text import printable
from clair_cli.version import __version__

if TYPE_CHECKING:
    from clair_cli.api import MergeResult, RefineResult
    from clair_cli.report.model import Report

_EPILOG = "\n".join(
    ["\b", "Exit codes:", *(f"  {code:<11} {name:<12} {text}" for code, name, text in EXIT_CODES)]
)
_COMMAND_EPILOG = "Exit codes: see clair --help."

app = typer.Typer(
    cls=OurGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clair {__version__}")
        raise typer.Exit


@app.callback()
def _clair(
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", is_eager=True, callback=_print_version, help="Show the version."
        ),
    ] = False,
) -> None:
    """Merge the LoRA adapters of federated clients, leaving out the contaminated ones."""


@app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)
@opt.with_options
def merge(
    clients: opt.Clients,
    output: opt.Output,
    *,
    config: opt.Config = None,  # read before, by GroupedCommand
    quiet: opt.Quiet = False,
    github: opt.Github = False,
    timings: opt.Timings = False,
    color: opt.Color = "auto",
    **options: Any,
) -> None:
    """Judge the clients and merge the benign ones into one adapter.

    Writes the adapter and a JSON report. The table and the verdict go to stderr.
    """
    ask_for_colour(color)
    with guarded() as run:
        check_inputs(clients, options)
        shown = take_reports(options, {"-o -": _is_stdout(output), "--github": github})
        summary = summary_file() if github else None
        target: Place | BinaryOut = output
        if _is_stdout(output):
            check_binary_stdout(paths_read(clients, options), paths_of(options["report"]))
            target = BinaryOut(run.begin_stream)
        with watched(
            quiet=quiet, timings=partial(_where, options) if timings else None
        ) as progress:
            from clair_cli.api import run_merge

            given = {**options, "progress": stoppable(progress)}
            result = run_merge(make_settings("merge", clients, target, given))
        run.finished = True
        _show_result(result, output, shown, summary, quiet=quiet)


@app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)
@opt.with_options
def inspect(
    clients: opt.Clients,
    output: opt.OutputReport = None,
    json: opt.Json = False,
    format_: opt.Format = "table",
    *,
    config: opt.Config = None,  # read before, by GroupedCommand
    quiet: opt.Quiet = False,
    github: opt.Github = False,
    timings: opt.Timings = False,
    color: opt.Color = "auto",
    **options: Any,
) -> None:
    """Judge the clients and show who is contaminated; merge nothing.

    The table, or the report as JSON, goes to stdout.
    """
    ask_for_colour(color)
    to_stdout = output is not None and _is_stdout(output)
    as_json = json or format_ == "json"
    target = None if to_stdout else output
    with guarded() as run:
        check_inputs(clients, options)
        flag = "-o -" if to_stdout else "--json"
        shown = take_reports(options, {flag: as_json or to_stdout, "--github": github})
        summary = summary_file() if github else None
        with watched(
            quiet=quiet, timings=partial(_where, options) if timings else None
        ) as progress:
            from clair_cli.api import run_inspect

            given = {**options, "progress": stoppable(progress)}
            report = run_inspect(make_settings("inspect", clients, target, given)).report
        run.finished = True
        path = json_path(options["report"]) if target is None else str(target)
        shown = "json" if as_json or to_stdout else shown
        if shown:
            show_report(report, shown, path)
            write_err(_words(report, sys.stderr, path, short=quiet or as_json))
        else:
            write_out(_words(report, sys.stdout, path, short=quiet))
        if summary is not None:
            tell_github(report, summary, path)
        raise typer.Exit(report.exit_code)


app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)(explain)


@app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)
@opt.with_options
def refine(
    clients: opt.Clients,
    output: opt.OutputFolder,
    *,
    config: opt.Config = None,  # read before, by GroupedCommand
    quiet: opt.Quiet = False,
    github: opt.Github = False,
    timings: opt.Timings = False,
    color: opt.Color = "auto",
    **options: Any,
) -> None:
    """Judge the clients and denoise each benign one.

    Writes one adapter per benign client, its noise reduced with what the clients
    share, and a JSON report with the estimated gain.
    """
    ask_for_colour(color)
    with guarded() as run:
        check_inputs(clients, options)
        check_not_stdout("-o", output)
        shown = take_reports(options, {"--github": github})
        summary = summary_file() if github else None
        with watched(
            quiet=quiet, timings=partial(_where, options) if timings else None
        ) as progress:
            from clair_cli.api import run_refine

            given = {**options, "progress": stoppable(progress)}
            result = run_refine(make_settings("refine", clients, output, given))
        run.finished = True
        _show_result(result, output, shown, summary, quiet=quiet)


@app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)
@opt.with_options
def convert(
    source: opt.Converted,
    output: opt.ConvertedOutput,
    tensor_names: opt.ConvertedNames,
    *,
    quiet: opt.Quiet = False,
    **options: Any,
) -> None:
    """Write one adapter in another format.

    Its factors stay as they are, and the scale goes where the format's readers look.
    What the format has no place for is said on stderr.
    """
    with guarded() as run:
        check_exists(source, "SRC")
        check_not_stdout("-o", output)
        from clair_cli.conversion import convert as convert_one

        result = convert_one(source, output, tensor_names, **options)
        run.finished = True
        lines = [f"note: {remark.text}" for remark in result.notes if not quiet]
        lines += [f"lost: {text}" for text in result.lost]
        count = f"{result.modules} module{'s'[: result.modules != 1]}"
        lines.append(f"{result.output}: {count}, {result.given_format} to {result.format}")
        write_err("".join(f"{printable(line)}\n" for line in lines))


@app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)
@opt.with_options
def verify(
    output: opt.Verified,
    clients: opt.VerifiedClients = None,
    report: opt.VerifiedReport = None,
    *,
    quiet: opt.Quiet = False,
    **options: Any,
) -> None:
    """Compare an adapter with its report, and with the clients.

    Hashes, shapes and scale are read again; with CLIENTS the merge itself is done
    again, and nothing is written. Exit code 3 says that something differs.
    """
    with guarded() as run:
        check_exists(output, "OUT")
        if clients is not None:
            check_inputs(clients, options)
        if report is not None:
            check_exists(report, "--report")
        with watched(quiet=quiet or clients is None) as progress:
            from clair_cli.verification import verify as verification

            result = verification.verify(
                output, clients, report=report, progress=progress, **options
            )
        run.finished = True
        lines = [f"note: {text}" for text in result.notes]
        lines += [f"differs: {text}" for text in result.differences]
        count, where = len(result.differences), f"{result.output}: "
        if count:
            lines.append(f"{where}{count} difference{'s'[: count > 1]} from {result.report_path}")
        else:
            lines.append(f"{where}as {result.report_path} says ({'; '.join(result.checked)})")
        shown = lines[-1:] if quiet else lines
        write_out("".join(f"{printable(line)}\n" for line in shown))
        raise typer.Exit(result.exit_code)


app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)(schema)
pictures.add_to(app, epilog=_COMMAND_EPILOG)
app.command(cls=GroupedCommand, epilog=_COMMAND_EPILOG)(diff)
app.command(epilog=_COMMAND_EPILOG)(completion)


def _told(wanted: bool, options: Mapping[str, Any]) -> Callable[[], str] | None:
    return partial(_where, options) if wanted else None


def _where(options: Mapping[str, Any]) -> str:
    """Where the work of a finished run was done, in words: no report says it."""
    if options["engine"] != "local":
        return f"a Ray cluster, its {'GPUs' if options['device'] == 'cuda' else 'CPUs'}"
    from clair_cli.engine.device import choose_device

    return "the CPU" if choose_device(options["device"]).name == "cpu" else "a GPU"


def _show_result(
    result: MergeResult | RefineResult,
    output: Place,
    shown: str,
    summary: Path | None,
    *,
    quiet: bool,
) -> NoReturn:
    """Show on stderr what a run that writes adapters found and made, and exit with its code.

    Args:
        shown: the format of the report that goes to stdout, or "".
        summary: the summary of a job of GitHub Actions, or None.

    Raises:
        typer.Exit: always.
    """
    path = result.report_path or ""
    if not quiet:
        _mention_leftovers(*(place_of(p) for p in (output, path) if p and str(p) != "-"))
    if shown:
        show_report(result.report, shown, path)
    write_err(_words(result.report, sys.stderr, path, short=quiet))
    if summary is not None:
        tell_github(result.report, summary, path)
    raise typer.Exit(result.report.exit_code)


def _words(report: Report, stream: TextIO | None, path: str, *, short: bool) -> str:
    """The report as text for a stream: all of it, or only warnings and the verdict."""
    if short:
        from clair_cli.cli import sentences

        return "\n".join(sentences.short(report, report_path=path)) + "\n"
    from clair_cli.cli.render import render

    return render(report, view_of(stream), report_path=path)


def _is_stdout(output: Place) -> bool:
    return str(output) == "-"


def _mention_leftovers(*paths: Place) -> None:
    """Say which temporary files a killed run left beside the results."""
    for path in (place for place in paths if isinstance(place, Path)):
        for name in leftovers(path):
            shown = printable(str(path.parent / name))
            write_err(f"note: {shown} was left by a run that was killed; it may be deleted\n")


def console() -> None:
    """The console script `clair`: `main`, and then the process ends at once.

    Once torch is there, taking down the interpreter and all tensors takes half a second; and after
    a signal the modules that threads are working on are not waited for.
    """
    claim()
    try:
        main()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if isinstance(code, int) and (code > 128 or "torch" in sys.modules):
            _end(code)
        raise


def _end(code: int) -> None:
    """End the process as the interpreter would, less what it tidies up. Results that can't leave
    stdout change the code, words that can't leave stderr don't."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, OutputError):
        code = code or OutputError("").exit_code
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()  # None where it was closed from the start
    os._exit(code)


def main() -> None:
    """Run the command line: never a traceback, always a `SystemExit` with a code of the table."""
    prepare_streams()
    warnings.showwarning = show_warning
    try:
        raise_on_signals()
        if VARIABLE in os.environ:
            prepare_to_answer()
        app(prog_name="clair")
    except Stopped as stop:  # outside a command: nothing was begun
        sys.exit(stop.exit_code)
    except (OutputError, OSError) as error:  # help or version onto a closed or full stdout
        discard(sys.stdout)
        if not isinstance(error, OutputError):
            error = OutputError(f"can't write to standard output: {error.strerror}")
        write_err(error_text(error))
        sys.exit(error.exit_code)
