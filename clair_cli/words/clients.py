"""What a report says of one client beside others: its company, its largest module."""

from __future__ import annotations

from statistics import median

from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable

MAX_NAMES = 8


def names(given: list[str] | tuple[str, ...], limit: int = MAX_NAMES) -> str:
    """Names for a sentence: the first ones, safe to print, and how many more.

    >>> names(("a", "b", "c")), names(("a",)), names(tuple("abcd"), 2)
    ('a, b and c', 'a', 'a, b and 2 more')
    """
    shown = [printable(name) for name in given[:limit]]
    more = len(given) - len(shown)
    last = f"{more:,} more" if more else shown.pop() if len(shown) > 1 else ""
    return ", ".join(shown) + (f" and {last}" if last else "")


def company(client: ClientReport, report: Report) -> str:
    """Names of the others in the client's own group or minority; "" if there is none."""
    return names(tuple(n for n in own_group(client, report) if n != client.name))


def own_group(client: ClientReport, report: Report) -> tuple[str, ...]:
    """Members of the client's own group or minority, itself too; () if it is in none."""
    for group in report.cohort.groups:
        if group.role in ("other", "minority") and client.name in group.members:
            return group.members
    return ()


def largest_module(client: ClientReport, report: Report) -> tuple[str, float | None]:
    """The module in which the client is largest beside the clients that are merged, or all if none
    is, and how many times their median it is there; ("", None) if no module can be compared."""
    others = [c for c in report.clients if c.weight > 0 and c is not client]
    others = others or [c for c in report.clients if c.modules and c is not client]
    best: tuple[str, float | None] = ("", None)
    for name, own in client.modules.items():
        sizes = [c.modules[name].norm for c in others if name in c.modules]
        typical = median(size for size in sizes if size > 0) if any(sizes) else 0.0
        if typical > 0 and own.norm / typical > (best[1] or 0.0):
            best = name, own.norm / typical
    return best
