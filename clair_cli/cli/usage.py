"""Wrong calls: the parser's own errors in the style of all others, and slips it takes for sense."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from clair_cli.cli.exits import error_text
from clair_cli.cli.options import OLDER_NAMES
from clair_cli.cli.streams import write_err
from clair_cli.errors import UsageError
from clair_cli.text import quoted, some_of

_ParserError: Any = typer.BadParameter.__bases__[0]  # wherever this typer keeps it


@contextmanager
def in_our_style() -> Iterator[None]:
    """Let the parser's errors show as ours do, with control and bidi characters escaped.

    What stands on a command line may come from a stranger: a script passes on a folder's names.
    """
    try:
        yield
    except _ParserError as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # it carries the help, in many lines
            text = error_text(_ours(error))
            error.show = lambda file=None: write_err(text)
        raise


def _ours(error: Any) -> UsageError:
    known = getattr(error, "possibilities", None) or ()
    close = [name for name in known if name not in OLDER_NAMES]
    text = error.message if close else error.format_message()
    text = text if text[:2].isupper() else text[:1].lower() + text[1:]
    hint = getattr(error, "hint", "") or (f"did you mean {' or '.join(close)}?" if close else "")
    if not hint:
        hint = f"see {error.ctx.command_path if error.ctx else 'clair'} --help"
    return UsageError(text.removesuffix("."), hint=hint)


def check_arguments(command: Any, ctx: Any, args: Sequence[str]) -> dict[str, Any] | None:
    """Refuse a long option with one dash, which reads as several short ones, and several paths.

    Returns:
        What is given, by the parameter's name, as text; None where help is asked for.

    Raises:
        the parser's error: with a hint at what was meant.
    """
    if not set(args).isdisjoint(ctx.help_option_names):
        return None
    options = [param for param in command.get_params(ctx) if param.param_type_name == "option"]
    names = {name for option in options for name in option.opts}
    with_value = {name for option in options if not option.is_flag for name in option.opts}
    before = ""
    for arg in args:
        if arg == "--":
            break
        if before not in with_value and arg not in names and f"-{arg.partition('=')[0]}" in names:
            name = arg.partition("=")[0]
            raise _error(f"no such option: {name}", ctx, f"did you mean -{name}?")
        before = arg
    given, extra, _ = command.make_parser(ctx).parse_args(args=list(args))
    if extra and "clients" in given:
        paths = [given["clients"], *extra]
        folders = {os.path.dirname(path) for path in paths}
        folder = f": {quoted(folders.pop())}" if len(folders) == 1 and "" not in folders else ""
        raise _error(
            f"CLIENTS is one folder, and {len(paths)} paths are given: "
            f"{some_of([quoted(path) for path in paths])}",
            ctx,
            f"give the folder that holds them{folder}",
        )
    return dict(given)


def _error(text: str, ctx: Any, hint: str) -> Any:
    error = _ParserError(text, ctx=ctx)
    error.hint = hint
    return error
