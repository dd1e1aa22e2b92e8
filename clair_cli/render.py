"""Report -> text for people: a table on a terminal, plain lines elsewhere. Returns, never prints.

Names come from strangers. They pass through `printable`, and at a terminal through
`rich.text.Text`, never through markup. A name is never cut: the reasons wrap around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from statistics import median

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clair_cli.escape import printable
from clair_cli.report import VERDICTS, ClientReport, MergedReport, RefinedReport, Report

MAX_BENIGN = 8  # more benign clients than this are summarised at a terminal
MAX_NAMES = 20  # in one sentence
NARROWEST = 60  # columns; a table needs them

_COLOURS = {
    "contaminated": "bold red",
    "suspicious": "yellow",
    "duplicate": "cyan",
    "rejected": "magenta",
    "undetermined": "yellow",
    "benign": "green",
}
_HEADER = ("client", "verdict", "weight", "reason")
_GAP = 2
_VERDICT_WIDTH = max(len(verdict) for verdict in VERDICTS)
_WEIGHT_WIDTH = 6
_REASON_WIDTH = 18  # at least

_AGREE = {
    "matrix": "the updates of {} point the same way",
    "output": "the updates of {} share an output subspace",
    "input": "the updates of {} share an input subspace",
}


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
    if not report.clients:  # nobody to show
        return "\n".join([*_below(report), last]) + "\n"
    if view.width is None or view.width < NARROWEST:
        lines = [*_above(report), "", *_plain_table(report), "", *_below(report), last]
        return "\n".join(lines) + "\n"
    console = _console(view.width, view.colour)
    _write_lines(console, _above(report))
    shown, n_hidden = _worth_a_row(report)
    _write_lines(console, [""])
    console.print(_rich_table(report, shown, view))
    _write_lines(console, [f"... and {n_hidden} more benign"] if n_hidden else [])
    _write_lines(console, ["", *_below(report)])
    style = "bold red" if report.with_verdict("contaminated") else "bold"
    console.print(Text(last, style=style, overflow="fold"))
    lines = [line.rstrip() for line in console.file.getvalue().split("\n")]  # type: ignore[attr-defined]
    return "\n".join(lines)


def verdict_line(report: Report, *, report_path: str = "") -> str:
    """The verdict and what was written, in one sentence on one line (no newline)."""
    parts = [_verdict(report)]
    counts = [
        f"{len(report.with_verdict(verdict))} {verdict}"
        for verdict in ("suspicious", "duplicate", "rejected")
        if report.with_verdict(verdict)
    ]
    if counts:
        parts.append(", ".join(counts))
    written = _written(report)
    if written:
        parts.append(written)
    if report_path:
        parts.append(f"report in {printable(report_path)}")
    return "; ".join(parts)


def _verdict(report: Report) -> str:
    cohort = report.cohort
    if cohort.outcome != "judged":
        why = printable(cohort.outcome_text).rstrip(".")
        return f"{cohort.outcome}: {why}" if why else cohort.outcome
    contaminated = report.with_verdict("contaminated")
    text = f"{len(contaminated)} of {_count(cohort.n_clients, 'client')} contaminated"
    return f"{text}: {_names(c.name for c in contaminated)}" if contaminated else text


def _written(report: Report) -> str:
    if report.merged is not None:
        n_merged = sum(client.weight > 0 for client in report.clients)
        merged = report.merged
        error = "" if merged.error is None else f", error {merged.error:.2g}"
        into = f" into {printable(merged.path)}" if merged.path else ""
        into = " into standard output" if merged.path == "-" else into
        return f"merged {n_merged}{into} (rank {merged.rank}{error})"
    if report.refined is not None:
        into = f" into {printable(report.refined.path)}" if report.refined.path else ""
        return f"refined {len(report.refined.clients)}{into}"
    if report.command == "inspect":
        return ""
    verb = "merged" if report.command == "merge" else "refined"
    tripped = f" (--fail-on {report.options.get('fail_on')})" if report.exit_code == 3 else ""
    return f"nothing {verb}{tripped}"


def _above(report: Report) -> list[str]:
    """The cohort: how many, who agrees with whom, which groups stand apart."""
    cohort = report.cohort
    clients = _count(cohort.n_clients, "client")
    if cohort.n_comparable != cohort.n_clients:
        clients += f" ({cohort.n_comparable} comparable)"
    if cohort.outcome == "refused":
        return [f"{clients}: not compared"]
    sharing = next((s for s in cohort.sharing if s.stacking == cohort.stacking), None)
    if sharing is None:
        found = ": no agreement found among them" if cohort.n_comparable > 2 else ""
        lines = [clients + found]
    else:
        numbers = [] if sharing.level is None else [f"similarity {_plus_minus(sharing)}"]
        if cohort.subspace_dim is not None:
            numbers.append(f"shared dimension {cohort.subspace_dim}")
        text = f"{clients}; {_AGREE[sharing.stacking].format(len(sharing.members))}"
        lines = [f"{text} ({', '.join(numbers)})" if numbers else text]
    for group in cohort.groups:
        if group.role == "other" and len(group.members) > 1:
            names = _names(group.members)
            lines.append(f"{len(group.members)} form a group of their own: {names}")
    return lines


def _plus_minus(sharing: object) -> str:
    level, se = getattr(sharing, "level", None), getattr(sharing, "se", None)
    return f"{level:.2f}" if se is None else f"{level:.2f} +/- {se:.2f}"


def _below(report: Report) -> list[str]:
    """The result, the warnings and what to do, each on a line."""
    lines = []
    if report.merged is not None:
        lines.append(_merged(report.merged))
    if report.refined is not None:
        lines.append(_refined(report.refined))
    lines += [f"warning: {printable(warning)}" for warning in report.warnings]
    if report.with_verdict("rejected"):
        lines.append(
            "note: ask rejected clients for their files again, or leave them out (--exclude)"
        )
    left_out = report.with_verdict("contaminated") + report.with_verdict("rejected")
    if left_out and report.exit_code == 0:
        lines.append(
            "note: exit code 0 although clients were left out; --fail-on contaminated makes it 3"
        )
    if report.cohort.remedy and report.merged is None and report.refined is None:
        lines.append(f"what to do: {printable(report.cohort.remedy)}")
    return lines


def _merged(merged: MergedReport) -> str:
    exact = merged.rank > merged.full_rank
    parts = [
        f"rank {merged.rank} ({merged.full_rank} needed)"
        if exact
        else f"rank {merged.rank} of {merged.full_rank}"
    ]
    if merged.error is not None:
        parts.append(f"writing it loses {_percent(merged.error)} of the exact mean")
    parts.append(f"alpha {merged.alpha:g}, {printable(merged.dtype)}")
    if merged.plain_mean_distance is not None:
        away = _percent(merged.plain_mean_distance)
        parts.append(
            "equal to the plain mean of all"
            if away == "0 %"
            else f"{away} away from the plain mean of all"
        )
    return "merged: " + "; ".join(parts)


def _percent(share: float) -> str:
    """A share in percent, two digits; tiny ones are 0, large ones a factor."""
    if share >= 0.995:
        return f"{100 * share:.0f} %" if share < 10 else f"{share:.2g} x"
    return "0 %" if share < 5e-7 else f"{100 * share:.2g} %"


def _refined(refined: RefinedReport) -> str:
    gains = [client.gain for client in refined.clients if client.gain is not None]
    n_local = sum(client.kept_local for client in refined.clients)
    better = [gain for gain in gains if gain > 0]
    gain = "gain not identifiable" if not gains else "no gain expected"
    if better:
        gain = f"median estimated gain {median(better):.0%}"
    kept = f"; {n_local} kept as they are: refinement is not sure to help" if n_local else ""
    return f"refined: {refined.side} side, {gain}{kept} ({printable(refined.why)})"


def _ordered(report: Report) -> list[ClientReport]:
    """Who was left out first; then benign clients with a remark, then the other benign ones."""
    place = {verdict: i for i, verdict in enumerate(VERDICTS)}
    return sorted(report.clients, key=lambda c: (place[c.verdict], not c.reasons))


def _rows(clients: Iterable[ClientReport], *, any_weight: bool) -> list[tuple[str, str, str, str]]:
    left_out = "out" if any_weight else "-"
    return [
        (
            printable(client.name),
            client.verdict,
            f"{client.weight:.1%}" if client.weight > 0 else left_out,
            "; ".join(printable(reason.text) for reason in client.reasons),
        )
        for client in clients
    ]


def _plain_table(report: Report) -> list[str]:
    any_weight = any(client.weight > 0 for client in report.clients)
    rows = [_HEADER, *_rows(_ordered(report), any_weight=any_weight)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for name, verdict, weight, reason in rows:
        cells = (_padded(name, widths[0]), _padded(verdict, widths[1]), weight.rjust(widths[2]))
        lines.append((" " * _GAP).join((*cells, reason)).rstrip())
    return lines


def _worth_a_row(report: Report) -> tuple[list[ClientReport], int]:
    """The clients to show on a terminal, and how many benign ones that leaves."""
    clients = _ordered(report)
    n_hidden = len(report.with_verdict("benign")) - MAX_BENIGN
    if n_hidden < 2:  # a line that says "1 more" could as well be that one
        return clients, 0
    return clients[: len(clients) - n_hidden], n_hidden


def _rich_table(report: Report, shown: list[ClientReport], view: View) -> Table:
    rows = _rows(shown, any_weight=any(client.weight > 0 for client in report.clients))

    longest = max((cell_len(row[0]) for row in rows), default=0)
    others = _VERDICT_WIDTH + _WEIGHT_WIDTH + _REASON_WIDTH + 3 * _GAP
    name_width = min(max(longest, len(_HEADER[0])), (view.width or 80) - others)
    table = Table(
        box=box.SIMPLE_HEAD if view.unicode else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1 if view.unicode else _GAP, 0, 0),  # the box adds one column
    )
    table.add_column(_HEADER[0], width=name_width, overflow="fold")
    table.add_column(_HEADER[1], width=_VERDICT_WIDTH)
    table.add_column(_HEADER[2], width=_WEIGHT_WIDTH, justify="right")
    table.add_column(_HEADER[3], overflow="fold")
    for name, verdict, weight, reason in rows:
        colour = _COLOURS[verdict]
        strong = colour if verdict != "benign" else ""
        table.add_row(Text(name, strong), Text(verdict, colour), Text(weight), Text(reason))
    return table


def _console(width: int, colour: bool) -> Console:
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


def _write_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        style = "yellow" if line.startswith("warning: ") else ""
        console.print(Text(line, style=style, overflow="fold"))


def _names(names: Iterable[str]) -> str:
    """All names, or the first ones of very many (the table and the report have all)."""
    shown = [printable(name) for name in names]
    if len(shown) <= MAX_NAMES:
        return ", ".join(shown)
    return f"{', '.join(shown[:MAX_NAMES])} and {len(shown) - MAX_NAMES} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
