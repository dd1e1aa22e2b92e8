"""One client of a report in words, with a bar for each layer. Returns, never prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from clair_cli.cli.render import View, console_of, write_lines
from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.command import folded
from clair_cli.words.explain import RESEMBLES, headline, sections, to_do
from clair_cli.words.layers import Layer, layers
from clair_cli.words.numbers import LINE, percent, times

_BAR = 30  # columns of 100 %
_MOST = 1.5  # shares above this are cut
_MAX_LAYERS = 200
_MAX_LABEL = 30  # columns; a longer name stands on a line of its own


def explained(client: ClientReport, report: Report, view: View) -> str:
    """One client in words, and a bar for each layer; ends in a newline."""
    lines = [headline(client)]
    for section in sections(client, report):
        if section.heading == RESEMBLES:
            lines += _layers(client, report, view)
        lines += ["", section.heading, *(f"  {line}" for line in section.lines)]
    step = to_do(client, report)
    lines += ["", "what to do", f"  {step.text}"]
    width = None if view.width is None else max(view.width, 20)
    if step.command:
        room = 10**9 if width is None else width - 4
        lines += [f"  {'$ ' if not k else ''}{line}"
                  for k, line in enumerate(folded(step.command, room))]  # fmt: skip
    if width is None:
        return "\n".join(lines) + "\n"
    console = console_of(width, view.colour)
    write_lines(console, lines)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _layers(client: ClientReport, report: Report, view: View) -> list[str]:
    """A bar for each layer: how much of what two of the others share there the client has."""
    found = layers(client, report)
    if all(layer.share is None for layer in found):
        return []
    prefix = _common([layer.name for layer in found])
    where = f" ({printable(prefix.rstrip('.'))})" if prefix else ""
    full, back = ("\u2588", "\u2591") if view.unicode else ("#", "-")
    heading = f"layer by layer{where}: what it has of what two of the others share"
    lines = ["", heading, f"  {full} with the others, {back} against them, | the line"
             f" ({percent(LINE)}) that it has to cross as a whole"]  # fmt: skip
    shown = found[:_MAX_LAYERS]
    labels = [printable(layer.name[len(prefix) :]) for layer in shown]
    columns = min(max(map(cell_len, labels)), _MAX_LABEL)
    bar = _bar_width(columns, view)
    for label, layer in zip(labels, shown, strict=True):
        if cell_len(label) > columns:
            lines.append(f"  {label}")
            label = ""
        label += " " * (columns - cell_len(label))
        lines.append(f"  {label}  {_bar(layer, bar, full, back)}".rstrip())
    if len(found) > len(shown):
        lines.append(f"  and {len(found) - len(shown):,} more layers")
    return lines


def _bar_width(columns: int, view: View) -> int:
    """Columns of a bar of 100 %."""
    if view.width is None:
        return _BAR
    room = max(view.width, 20) - columns - 2 - 2 - 6 - 2 - 14
    return max(4, min(_BAR, int(room / _MOST)))


def _bar(layer: Layer, width: int, full: str, back: str) -> str:
    """One layer's number, bar and remarks."""
    if layer.share is None:
        return "     -"
    length = round(width * min(abs(layer.share), _MOST))
    drawn = (back if layer.share < 0 else full) * length
    mark = round(width * LINE)
    if length <= mark:
        drawn = f"{drawn:<{mark}}|"
    said = f"{round(100 * max(-9.99, min(9.99, layer.share))) or 0} %".rjust(6)
    unsure = "by chance?" if layer.unsure else ""
    size = times(layer.size, "size") if layer.size is not None and layer.size > 2 else ""
    remarks = ", ".join(filter(None, (unsure, size)))
    return f"{said}  {drawn}" + (f"  {remarks}" if remarks else "")


def _common(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot; "" for one name."""
    if len(names) < 2:
        return ""
    low, high = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[: low.rfind(".", 0, same) + 1]
