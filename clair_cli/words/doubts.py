"""Where a report's two judges disagree, or a client's place is unusual for its verdict."""

from __future__ import annotations

from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.clients import names
from clair_cli.words.numbers import share_of_two

# Reasons that a client's similarities give.
LIKENESS = frozenset({"unlike_the_others", "in_a_group", "opposite"})
# Those of them that the decomposition sees: it takes an update and its opposite for one direction.
SEEN_TWICE = LIKENESS - {"opposite"}


def doubts(report: Report) -> list[str]:
    """What is unusual about the verdicts, each in a sentence; none in most rounds."""
    if report.cohort.outcome != "judged":
        return []
    found = []
    kept, left = second_opinion(report)
    if kept or left:
        said = [f"keeps {names(kept)}" if kept else "", f"leaves out {names(left)}" if left else ""]
        found.append(
            "the two judges disagree: the second opinion (the low-rank plus block-sparse"
            f" decomposition), which decides nothing, {' and '.join(filter(None, said))}; look at"
            " these clients first"
        )
    for client in report.clients:
        if client.verdict == "benign" and not client.decided and is_alone(client, report):
            found.append(f"{printable(client.name)} {alone_words(client)}")
    return found


def second_opinion(report: Report) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who is kept by the decomposition though contaminated for what it learnt, and who is left out
    by it though benign; a size or a sign alone is no contradiction, which it does not look at."""
    found = report.cohort.decomposition
    if found is None or found.agrees or not found.converged:
        return (), ()
    judged = [client for client in report.clients if not client.decided]
    blamed = {c.name for c in judged if c.verdict == "contaminated"
              and SEEN_TWICE & {r.code for r in c.reasons}}  # fmt: skip
    benign = {c.name for c in judged if c.verdict == "benign"}
    return (
        tuple(name for name in found.kept if name in blamed),
        tuple(name for name in found.left_out if name in benign),
    )


def is_alone(client: ClientReport, report: Report) -> bool:
    """Whether a client is in no group."""
    return any(g.role == "loner" and client.name in g.members for g in report.cohort.groups)


def alone_words(client: ClientReport) -> str:
    """Why a client in no group can be benign; follows its name."""
    share = share_of_two(client.scores.loading)
    return (
        "is alone in the groups and yet benign: it is too little like any set of clients to be one"
        " of them, and over all of them together"
        + (f" has {share}" if share else " is not shown to be unlike them")
    )
