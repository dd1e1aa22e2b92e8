"""A short table for notebooks: what `_repr_html_` of reports and results shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from clair_cli.text import printable

MAX_ROWS = 30


def short_table(title: str, header: Sequence[str], rows: Sequence[Iterable[str]]) -> str:
    """A title and the first rows as HTML; what strangers wrote in them is text.

    >>> short_table("1 client", ["client"], [["<b>"]]).splitlines()[-2]
    '<tr><td>&lt;b&gt;</td></tr>'
    """
    lines = [f"<p><strong>{_text(title)}</strong></p>", "<table>", _row(header, "th")]
    lines += [_row(row, "td") for row in rows[:MAX_ROWS]]
    lines.append("</table>")
    more = len(rows) - MAX_ROWS
    if more > 0:
        lines.append(f"<p>and {more:,} more</p>")
    return "\n".join(lines)


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"


def _text(given: str) -> str:
    return escape(printable(given))
