"""Report -> text for people: a table on a terminal, two lines a client on a narrow one, plain lines
elsewhere. Returns, never prints.

Names come from strangers. They pass through `printable`, and at a terminal through
`rich.text.Text`, never through markup. A name is never cut: the reasons wrap around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from rich.cells import cell_len

from clair_cli.cli.sentences import above, below, steps, verdict_line
from clair_cli.report.model import VERDICTS, ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.command import folded
from clair_cli.words.reasons import short_reasons

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_BENIGN = 8  # more benign clients than this are summarised at a terminal
NARROWEST = 60  # columns; a table needs them
SURE_FROM = 80  # columns; a table that says how sure each verdict is needs them
_LEAST = 20  # columns; words need them

_COLOURS = {
    "contaminated": "bold red",
    "minority": "bold yellow",
    "suspicious": "yellow",
    "duplicate": "cyan",
    "rejected": "magenta",
    "undetermined": "yellow",
    "benign": "green",
}
_HEADER = ("client", "verdict", "sure", "weight", "reason")
_GAP = 2
_VERDICT_WIDTH = max(len(verdict) for verdict in VERDICTS)
_SURE_WIDTH = len("likely")
_WEIGHT_WIDTH = 6
_REASON_WIDTH = 18  # at least


@dataclass(frozen=True)
class View:
    """What the place the text goes to can show.

    Attributes:
        width: columns of the terminal; None when it is none: nothing is wrapped then.
        colour: whether ANSI colours may be used.
        unicode: whether line-drawing characters can be shown.
    """

    width: int | None = None
    colour: bool = False
    unicode: bool = True


def render(report: Report, view: View = View(), *, report_path: str = "") -> str:
    """The whole report in words: cohort, clients, result, warnings, verdict; ends in a newline.

    Args:
        report: what to show.
        view: of the stream that the text is for.
        report_path: where the JSON report was written, as given, or "".
    """
    last = verdict_line(report, report_path=report_path)
    todo, command = steps(report, report_path)
    if view.width is None or not report.clients:
        todo += [f"$ {command}"] if command else []
        table = [*above(report), "", *_plain_table(report, view.colour)]
        above_ = [*table, *_block(below(report))] if report.clients else below(report)
        return "\n".join([*above_, "", *todo, "", last]) + "\n"
    from rich.text import Text

    console = console_of(max(view.width, _LEAST), view.colour)
    write_lines(console, above(report))
    shown, n_hidden = _worth_a_row(report)
    write_lines(console, [""])
    if view.width < NARROWEST:
        _write_blocks(console, report, shown)
    else:
        console.print(_rich_table(report, shown, view))
    write_lines(console, [f"... and {n_hidden} more benign"] if n_hidden else [])
    write_lines(console, [*_block(below(report)), "", *todo])
    write_lines(console, ["$ " + "\n".join(folded(command, console.width - 2))] if command else [])
    write_lines(console, [""])
    style = "bold red" if report.with_verdict("contaminated") else "bold"
    console.print(Text(last, style=style, overflow="fold"))
    lines = [line.rstrip() for line in console.file.getvalue().split("\n")]  # type: ignore[attr-defined]
    return "\n".join(lines)


def _block(lines: list[str]) -> list[str]:
    """The lines, if any, behind an empty one."""
    return ["", *lines] if lines else []


def _ordered(report: Report) -> list[ClientReport]:
    """Who was left out first; then benign clients with a remark, then the other benign ones."""
    place = {verdict: i for i, verdict in enumerate(VERDICTS)}
    return sorted(report.clients, key=lambda c: (place[c.verdict], not c.reasons))


def _rows(report: Report, clients: Iterable[ClientReport]) -> list[tuple[str, ...]]:
    """The cells under `_HEADER`."""
    left_out = "out" if any(client.weight > 0 for client in report.clients) else "-"
    reasons = dict(zip(map(id, report.clients), short_reasons(report), strict=True))
    return [
        (
            printable(client.name),
            client.verdict,
            client.sure,
            f"{client.weight:.1%}" if client.weight > 0 else left_out,
            reasons[id(client)],
        )
        for client in clients
    ]


def _plain_table(report: Report, colour: bool) -> list[str]:
    rows = [_HEADER, *_rows(report, _ordered(report))]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, verdict, sure, weight, reason in rows:
        shown = _padded(verdict, widths[1])
        if colour and verdict in _COLOURS:
            shown = _ansi(shown, _COLOURS[verdict])
        cells = [_padded(name, widths[0]), shown, _padded(sure, widths[2]), weight.rjust(widths[3])]
        if not _anybody_sure(report):
            del cells[2]
        lines.append((" " * _GAP).join((*cells, reason)).rstrip())
    return lines


def _anybody_sure(report: Report) -> bool:
    """Whether any verdict says how sure it is."""
    return any(client.sure for client in report.clients)


def _worth_a_row(report: Report) -> tuple[list[ClientReport], int]:
    """The clients to show on a terminal, and how many benign ones that leaves."""
    clients = _ordered(report)
    n_hidden = len(report.with_verdict("benign")) - MAX_BENIGN
    if n_hidden < 2:  # a line that says "1 more" could as well be that one
        return clients, 0
    return clients[: len(clients) - n_hidden], n_hidden


def _rich_table(report: Report, shown: list[ClientReport], view: View) -> Table:
    """The table of a terminal. It does not say how sure a verdict is where there is no room for
    that, or where a name that would be whole would be folded for it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = _rows(report, shown)
    width = view.width or 80
    longest = max((cell_len(row[0]) for row in rows), default=0)
    room = width - (_VERDICT_WIDTH + _WEIGHT_WIDTH + _REASON_WIDTH + 3 * _GAP)  # for names
    less = room - (_SURE_WIDTH + _GAP)
    sure = width >= SURE_FROM and _anybody_sure(report) and not less < longest <= room
    name_width = min(max(longest, len(_HEADER[0])), less if sure else room)
    table = Table(
        box=box.SIMPLE_HEAD if view.unicode else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1 if view.unicode else _GAP, 0, 0),  # the box adds one column
    )
    table.add_column(_HEADER[0], width=name_width, overflow="fold")
    table.add_column(_HEADER[1], width=_VERDICT_WIDTH)
    if sure:
        table.add_column(_HEADER[2], width=_SURE_WIDTH)
    table.add_column(_HEADER[3], width=_WEIGHT_WIDTH, justify="right")
    table.add_column(_HEADER[4], overflow="fold")
    for name, verdict, confidence, weight, reason in rows:
        colour = _COLOURS[verdict]
        strong = colour if verdict != "benign" else ""
        cells = [Text(name, strong), Text(verdict, colour), Text(weight), Text(reason)]
        if sure:
            cells.insert(2, Text(confidence))
        table.add_row(*cells)
    return table


def _write_blocks(console: Console, report: Report, shown: list[ClientReport]) -> None:
    """Each client's name, verdict and weight, and the reason under them."""
    from rich.padding import Padding
    from rich.text import Text

    for name, verdict, _, weight, reason in _rows(report, shown):
        words = Text.assemble(name, "  ", (verdict, _COLOURS[verdict]), "  ", weight)
        words.overflow = "fold"
        console.print(words)
        if reason:
            console.print(Padding(Text(reason, overflow="fold"), (0, 0, 0, _GAP)))


def console_of(width: int, colour: bool) -> Console:
    from rich.console import Console

    return Console(
        file=StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def write_lines(console: Console, lines: list[str]) -> None:
    """Each line, wrapped behind its own indent."""
    from rich.padding import Padding
    from rich.text import Text

    for line in lines:
        style = "yellow" if line.startswith(("warning: ", "blocking: ")) else ""
        style = "bold" if line == "next steps" else style
        indent = len(line) - len(line.lstrip(" "))
        text = Text(line[indent:], style=style, overflow="fold")
        console.print(Padding(text, (0, 0, 0, indent)) if indent else text)


def _ansi(text: str, style: str) -> str:
    from rich.color import ColorSystem
    from rich.style import Style

    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
