"""What a report says of one client beside others: its company, its largest module."""

from __future__ import annotations

import weakref
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
    """The module in which the client is largest beside the median of the clients that are merged
    (of all if none is), and how many times that it is there; ("", None) if none can be compared.
    """
    typical = _typical_norms(report)
    best: tuple[str, float | None] = ("", None)
    for name, own in client.modules.items():
        if name in typical and own.norm / typical[name] > (best[1] or 0.0):
            best = name, own.norm / typical[name]
    return best


_last: tuple[weakref.ref[Report], dict[str, float]] | None = None


def _typical_norms(report: Report) -> dict[str, float]:
    """Median norm above 0 in each module, kept for the last report: many clients ask for it."""
    global _last
    if _last is None or _last[0]() is not report:
        merged = [c for c in report.clients if c.weight > 0]
        sizes: dict[str, list[float]] = {}
        for one in merged or report.clients:
            for name, scores in one.modules.items():
                if scores.norm > 0:
                    sizes.setdefault(name, []).append(scores.norm)
        _last = weakref.ref(report), {name: median(norms) for name, norms in sizes.items()}
    return _last[1]
