"""Tables of the page: the clients, and the strongest rows of each heat map."""

from __future__ import annotations

from dataclasses import dataclass

from clair_cli.pictures.grids import Grid
from clair_cli.pictures.order import by_verdict
from clair_cli.report.model import VERDICTS, ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.doubts import doubts
from clair_cli.words.reasons import explain_client
from clair_cli.words.sure import sure_words

_ROWS = 20
_SURE = ("clear", "likely", "open")


def number(value: float | None) -> str:
    """Three digits, or a dash; never "-0.00".

    >>> number(0.12345), number(-0.0001), number(None), number(12345.6)
    ('0.123', '0.000', '-', '12,346')
    """
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.2e}"
    text = f"{value:.3f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


@dataclass(frozen=True)
class ClientRow:
    """One client in the first table; all texts are safe to print.

    Attributes:
        order, sure_order: keys to sort by.
        why: short, one a reason. more: sentences. numbers: label and value.
    """

    name: str
    verdict: str
    order: int
    confidence: str
    sure_order: int
    weight: float
    why: tuple[str, ...]
    more: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]


def client_rows(report: Report) -> list[ClientRow]:
    """All clients, who was left out first."""
    return [_row(report, client) for client in by_verdict(report.clients)]


def _row(report: Report, client: ClientReport) -> ClientRow:
    scores, measures = client.scores, client.scores.measures
    numbers = [
        ("of what two of the others share", scores.loading),
        ("its standard error", scores.loading_se),
        ("an honest client looks so unlike with probability", client.p_honest),
        ("it would be noticed if unrelated with probability", client.power),
        ("norm over the median", measures.get("norm_ratio")),
        ("largest in one module, over the median", measures.get("module_norm_ratio")),
    ]
    shown = [(label, number(value)) for label, value in numbers if value is not None]
    if client.sha256:
        shown.append(("SHA-256 of its weights", client.sha256))
    sure = client.sure
    said = explain_client(client, report)
    more = [sentences.line[:1].upper() + sentences.line[1:] for sentences in said]
    how_sure = sure_words(client)
    if how_sure:
        more.append(f"How sure? {how_sure[:1].upper()}{how_sure[1:]}.")
    return ClientRow(
        printable(client.name), client.verdict, VERDICTS.index(client.verdict), sure,
        _SURE.index(sure) if sure in _SURE else len(_SURE), client.weight,
        tuple(sentences.short for sentences in said), tuple(more), tuple(shown),
    )  # fmt: skip


def remarks(report: Report) -> list[tuple[str, str]]:
    """Class and text of what is worth knowing about the round: the remarks, and doubts."""
    found = [(remark.class_, printable(remark.text)) for remark in report.warnings]
    return found + [("look again", text) for text in doubts(report)]


def alike_rows(grid: Grid) -> list[tuple[str, str, float, str, float]]:
    """Client, whom it is most like and how much, and least; the least alike clients first."""
    found = []
    for i, row in enumerate(grid.values):
        pairs = zip(row, grid.columns, strict=True)
        known = [(v, c) for j, (v, c) in enumerate(pairs) if v is not None and j != i]
        if known:
            most, least = max(known), min(known)
            found.append((printable(grid.rows[i]), printable(most[1]), most[0],
                          printable(least[1]), least[0]))  # fmt: skip
    return sorted(found, key=lambda r: r[2])[:_ROWS]


def share_rows(grid: Grid) -> list[tuple[str, int, int, str, float]]:
    """Client, in how many modules it has less than half of what typical members share there, of
    how many, and where it has least; the most such modules first."""
    found = []
    for name, row in zip(grid.rows, grid.values, strict=True):
        known = [(v, c) for v, c in zip(row, grid.columns, strict=True) if v is not None]
        if known:
            least, where = min(known)
            low = sum(value < 0.5 for value, _ in known)
            found.append((printable(name), low, len(known), printable(where), least))
    return sorted(found, key=lambda r: (-r[1] / r[2], r[4]))[:_ROWS]


def size_rows(grid: Grid) -> list[tuple[str, str, float]]:
    """Client, the module in which it is largest, and how many times the median; largest first."""
    found = []
    for name, row in zip(grid.rows, grid.values, strict=True):
        known = [(v, c) for v, c in zip(row, grid.columns, strict=True) if v is not None]
        if known:
            largest, where = max(known)
            found.append((printable(name), printable(where), 2.0 ** min(largest, 60.0)))
    return sorted(found, key=lambda r: -r[2])[:_ROWS]
