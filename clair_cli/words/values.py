"""What the templates of reasons can say of a client, by name; "" where it is not known.

Some numbers stand in the report's own text of a reason only: they are taken out of it, and a text
that is worded otherwise, as a later version's may be, is told as it is.
"""

from __future__ import annotations

import re

from clair_cli.report.model import ClientReport, Reason, Report
from clair_cli.text import printable
from clair_cli.words import numbers
from clair_cli.words.clients import company, largest_module

_HEAD_COSINES = re.compile(r"(?:what changed in )?(\S+) .*: cosine (-?[\d.]+), theirs (-?[\d.]+)")
_HEAD_SIZE = re.compile(r"its head differs from the others' by ([\d.e+]+) x the median difference")
_COUNTS = re.compile(r"large: counts ([\d.]+) of its weight")
_TIED = re.compile(r"like or unlike (.+) as nobody else is\b.*")


def values_of(client: ClientReport, reason: Reason, report: Report) -> dict[str, str]:
    """The values that a template of this reason can name."""
    text = printable(reason.text)
    return {
        "text": text,
        **_of_scores(client),
        "company": company(client, report),
        "module_size": _module_size(client, reason, report),
        "modules": text.partition("unlike the others in ")[2],
        "without": text.partition("else ")[2].partition(": ")[0],
        "decision": _decision(client),
        "counts": _counts(text),
        "head": _head(text),
        "head_size": _head_size(text),
        "tied": _TIED.sub(r"\1", text) if _TIED.fullmatch(text) else "",
    }


def _of_scores(client: ClientReport) -> dict[str, str]:
    scores, loading = client.scores, client.scores.loading
    measures = scores.measures
    known = loading is not None and loading >= numbers.LINE
    return {
        "little": numbers.little(loading),
        "share": numbers.share_of_two(loading),
        "interval": numbers.give_or_take(loading, scores.loading_se),
        "odds": numbers.odds(client.p_honest),
        "chance": numbers.by_chance(client.p_honest),
        "size": numbers.times(measures.get("norm_ratio"), "the median client's size"),
        "spread": numbers.times(
            measures.get("effective_rank_ratio"), "as many directions as the median client"
        ),
        "agrees": f"otherwise like the others: {numbers.share_of_two(loading)}" if known else "",
    }


def _module_size(client: ClientReport, reason: Reason, report: Report) -> str:
    if reason.code != "module_norm":  # the others' sizes are looked through for it
        return ""
    module, ratio = largest_module(client, report)
    return numbers.times(ratio, f"the median in {printable(module)}")


def _decision(client: ClientReport) -> str:
    """Why, who and until when, of a verdict that a person gave."""
    if client.review is None:
        return ""
    said = {"": client.review.reason, "says ": client.review.by, "until ": client.review.until}
    return ", ".join(f"{word}{printable(part)}" for word, part in said.items() if part)


def _counts(text: str) -> str:
    found = _COUNTS.fullmatch(text)
    return f"it counts for {numbers.percent(float(found[1]))} of its weight" if found else ""


def _head(text: str) -> str:
    """How like the others' a head is, by its name; the text itself where it has no cosines."""
    found = _HEAD_COSINES.fullmatch(text)
    if found is None:
        return text
    name, own, theirs = found.groups()
    return (
        f"{name}: likeness to the others' {own}, of theirs to one another {theirs}; 1 is the same"
        " direction, 0 an unrelated one, and below 0 they are against each other"
    )


def _head_size(text: str) -> str:
    if text == "its head differs, and most clients' are the same":
        return "most clients' heads are the same"
    found = _HEAD_SIZE.fullmatch(text)
    return numbers.times(float(found[1]), "the median client's change") if found else ""
