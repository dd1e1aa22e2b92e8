"""The verdict on a round in one sentence, and the facts under it."""

from __future__ import annotations

from collections.abc import Sequence

from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.numbers import loss
from clair_cli.words.sure import power_words

_MAX_NAMES = 8
_OTHERS = ("minority", "suspicious", "duplicate", "rejected")
_AGREE = {
    "matrix": "The updates of {} clients point the same way.",
    "output": "The updates of {} clients share their output directions.",
    "input": "The updates of {} clients share their input directions.",
}


# What each verdict is and what becomes of the client, for people who see it for the first time.
MEANINGS = {
    "contaminated": "unlike the others, opposite to them, like noise or far too large; left out",
    "minority": "shares something with a few clients that all others lack, and what all share too;"
    " merged in that part, unless --minority says otherwise",
    "suspicious": "something is unlike the others; merged with at most a typical client's weight",
    "duplicate": "the same update as another client; counted once",
    "rejected": "its files can't be used, or not be compared; in no merge",
    "undetermined": "the round as a whole could not be judged",
    "benign": "shares what the others share; merged",
}


def headline(report: Report) -> str:
    """Who is contaminated, or why nobody was judged, in one sentence."""
    cohort = report.cohort
    if cohort.outcome != "judged":
        why = printable(cohort.outcome_text).rstrip(".")
        what = "The round was refused" if cohort.outcome == "refused" else "No verdict is possible"
        return f"{what}: {why}." if why else f"{what}."
    contaminated = report.with_verdict("contaminated")
    of = f"of {_count(cohort.n_clients, 'client')}"
    verb = "is" if len(contaminated) == 1 else "are"
    if contaminated:
        text = f"{len(contaminated)} {of} {verb} contaminated: {names(contaminated)}"
    else:
        text = f"None {of} is contaminated"
    others = [f"{len(found)} {verdict}" for verdict in _OTHERS
              if (found := report.with_verdict(verdict))]  # fmt: skip
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def facts(report: Report) -> list[str]:
    """What was compared, what would have been noticed and what was made, in sentences."""
    cohort, found = report.cohort, list[str]()
    group = next((g for g in cohort.groups if g.role == "collaborative"), None)
    if group is not None and cohort.stacking in _AGREE:
        found.append(_AGREE[cohort.stacking].format(len(group.members)))
    power = power_words(report)
    if power:
        found.append(power[:1].upper() + power[1:] + ".")
    if report.merged is not None:
        n = sum(client.weight > 0 for client in report.clients)
        merged = report.merged
        lost = "" if merged.error is None else f", which loses {loss(merged.error)} of their mean"
        found.append(f"{_count(n, 'client')} merged at rank {merged.rank}{lost}.")
    if report.refined is not None:
        found.append(f"{_count(len(report.refined.clients), 'client')} refined.")
    return found


def names(clients: Sequence[ClientReport]) -> str:
    """The first names, and how many more."""
    shown = [printable(client.name) for client in clients[:_MAX_NAMES]]
    more = len(clients) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
