"""How sure a verdict is, and what the round could have noticed at all, in words."""

from __future__ import annotations

from clair_cli.report.model import ClientReport, EarlierScores, Report
from clair_cli.words.numbers import give_or_take, probability

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
    if said and by_earlier(client):
        assert client.earlier is not None
        alone = f"by this one alone it is {client.earlier.alone}"
        said = f"{said} (with {_rounds(client.earlier)}; {alone})"
    if not client.decided:
        return said
    return f"a person decided; by its numbers it is {verdict}" + (f", {said}" if said else "")


def by_earlier(client: ClientReport) -> bool:
    """Whether earlier rounds have made the verdict on a client surer."""
    return client.earlier is not None and client.earlier.alone != client.confidence


def earlier_words(client: ClientReport) -> str:
    """What earlier rounds add, as a sentence without a full stop; "" if none saw the client."""
    found = client.earlier
    if found is None:
        return ""
    if not found.agrees:
        return f"what {_rounds(found)} saw of it is not what this one sees, and counts for nothing"
    changed = f"by this round alone the verdict is {found.alone}"
    if not by_earlier(client):
        changed = "which makes the verdict no surer"
    return f"over this round and {_rounds(found)} it has {_held(found)}; {changed}"


def _held(found: EarlierScores) -> str:
    return give_or_take(found.loading, found.loading_se)


def _rounds(found: EarlierScores) -> str:
    return "1 earlier round" if found.rounds == 1 else f"{found.rounds:,} earlier rounds"


def power_words(report: Report) -> str:
    """What this round could have noticed, as a sentence without a full stop; "" if not known."""
    power = report.cohort.power
    if power is None:
        return ""
    return (
        "a client that shares nothing with the others would be noticed in this round "
        + probability(power)
    )
