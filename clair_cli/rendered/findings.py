"""What a pipeline has to act on, from a report: a finding for the round, each client, each remark.

All texts pass through `printable`: no control, bidi or line-breaking character is left in them.
What else a form gives a meaning to (`|`, `<`, `::`) that form escapes itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from clair_cli.report.model import VERDICTS, ClientReport, Report
from clair_cli.text import printable, whole_characters
from clair_cli.words.outcomes import OUTCOMES, outcome_code
from clair_cli.words.reasons import explain_client
from clair_cli.words.sure import sure_words

Level = Literal["error", "warning", "note"]

LEVELS: dict[str, Level] = {
    "contaminated": "error", "rejected": "error", "minority": "warning", "suspicious": "warning",
    "duplicate": "note", "undetermined": "error", "refused": "error",
}  # fmt: skip
"""Of a finding about a client or the round, by its rule."""

RULES = {
    "contaminated": "The client's update is not like the others', and is left out of the merge.",
    "rejected": "The client's files can't be used, and are not in the merge.",
    "minority": "The client shares something with a few others that all the rest lack.",
    "suspicious": "The client may be contaminated; it is merged with at most a typical weight.",
    "duplicate": "The client's update is the same as another client's.",
    "undetermined": "No honest verdict on this round is possible; a person has to decide.",
    "refused": "There is no usable cohort.",
}
"""What each rule says, one sentence; a remark's rule is its code."""


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        rule: a verdict, an outcome, or the code of a remark.
        client: its name, safe to print; "" where it is about the round.
        path: of the client's files or of the folder of clients, as given; "" in memory.
        text: sentences, safe to print, on one line.
        reasons: the codes of a client's reasons.
        fingerprint: 64 hexadecimal digits, the same for the same rule and client in every round.
    """

    rule: str
    level: Level
    client: str
    path: str
    text: str
    reasons: tuple[str, ...]
    fingerprint: str

    @property
    def title(self) -> str:
        """A few words: what, and who."""
        return f"{self.client}: {self.rule}" if self.client else self.rule


def findings(report: Report) -> list[Finding]:
    """All findings, the round's first, then the clients' from worst to mildest, then remarks that
    are more than a note. Benign clients, and those without a verdict in a round that has none, are
    no findings."""
    found = []
    folder = whole_characters(str(report.options.get("clients") or ""))
    folder = "" if folder == "(in memory)" else folder
    if report.cohort.outcome != "judged":
        text = outcome_text(report)
        found.append(_finding(report.cohort.outcome, "error", "", folder, text))
    clients = [c for v in VERDICTS if v in LEVELS and v != "undetermined"
               for c in report.with_verdict(v)]  # fmt: skip
    for client in clients:
        codes = tuple(reason.code for reason in client.reasons)
        found.append(
            _finding(
                client.verdict, LEVELS[client.verdict], client.name, whole_characters(client.path),
                why(client, report), codes,
            )
        )  # fmt: skip
    for remark in report.warnings:
        if remark.class_ != "note" and remark.text != report.cohort.outcome_text:
            found.append(_finding(remark.code, "warning", "", folder, printable(remark.text)))
    return found


def _finding(
    rule: str, level: Level, client: str, path: str, text: str, reasons: tuple[str, ...] = ()
) -> Finding:
    name = whole_characters(client)
    mark = hashlib.sha256(f"{rule}\0{name}".encode()).hexdigest()
    return Finding(rule, level, printable(client), path, text, reasons, mark)


def why(client: ClientReport, report: Report) -> str:
    """A client's reasons in words and how sure its verdict is, safe to print; "" without any."""
    sentences = [_capital(said.line) for said in explain_client(client, report)]
    sure = sure_words(client)
    if sure and sentences:
        sentences.append(f"{_capital(sure)}.")
    return " ".join(sentences)


def outcome_text(report: Report) -> str:
    """Why a round is not judged, and what to do, safe to print; "" where it is."""
    cohort, known = report.cohort, OUTCOMES.get(outcome_code(report))
    if cohort.outcome == "judged":
        return ""
    parts = [cohort.outcome_text, *([known.ask] if known else [cohort.remedy])]
    return " ".join(f"{_capital(printable(part)).rstrip('.')}." for part in parts if part)


def headline(report: Report) -> str:
    """The verdict in one sentence without names, safe to print."""
    cohort = report.cohort
    if cohort.outcome != "judged":
        return f"{cohort.outcome}: {printable(cohort.outcome_text).rstrip('.')}"
    counts = [(v, len(report.with_verdict(v))) for v in VERDICTS]
    bad = [
        f"{n} {verdict}" for verdict, n in counts if n and verdict not in ("benign", "contaminated")
    ]
    contaminated = len(report.with_verdict("contaminated"))
    clients = f"{cohort.n_clients} client{'s'[: cohort.n_clients != 1]}"
    return ", ".join([f"{contaminated} of {clients} contaminated", *bad])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
