"""How sure a verdict is, and what the round could have noticed at all, in words."""

from __future__ import annotations

from clair_cli.report.model import ClientReport, Report
from clair_cli.words.numbers import probability

_SURE = {
    ("benign", "clear"): "clear: had it shared nothing with the others, that would have shown",
    ("benign", "likely"): "likely: had it shared nothing with the others, that would most likely"
    " have shown",
    ("benign", "open"): "open: it looks honest, but not surely; a second round shows more",
    ("minority", "clear"): "clear: chance hardly ever brings about what they share",
    ("minority", "likely"): "likely: chance seldom brings about what they share",
    ("minority", "open"): "open: chance may well have brought about what they share",
    ("", "clear"): "clear: hardly any honest client looks like this",
    ("", "likely"): "likely: few honest clients look like this",
    ("", "open"): "open: honest clients may well look like this; do not act on it alone",
}


def sure_words(client: ClientReport) -> str:
    """How sure the verdict on a client is, in a phrase; "" where it has no confidence."""
    verdict = client.judged if client.judged and client.decided else client.verdict
    kind = verdict if verdict in ("benign", "minority") else ""
    said = _SURE.get((kind, client.confidence or ""), "")
    if not client.decided:
        return said
    return f"a person decided; by its numbers it is {verdict}" + (f", {said}" if said else "")


def power_words(report: Report) -> str:
    """What this round could have noticed, as a sentence without a full stop; "" if not known."""
    power = report.cohort.power
    if power is None:
        return ""
    return (
        "a client that shares nothing with the others would be noticed in this round "
        + probability(power)
    )
