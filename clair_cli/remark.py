"""A remark on a round, for the report: what it is about, how bad that is, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from clair_cli.errors import shortened
from clair_cli.report.fields import Code, Text
from clair_cli.text import MAX_NOTES

RemarkClass = Literal["note", "warning", "blocking"]
"""From harmless to worst: to know; to act on, so that `--fail-on warning` trips; and what makes any
verdict meaningless."""


@dataclass(frozen=True)
class Remark:
    """A remark on the round, to be read before the verdicts are believed.

    Attributes:
        code: what it is about, as in "entries_ignored"; stays the same from version to version.
        class_: how bad it is: note (to know), warning (to act on, trips --fail-on warning) or
            blocking (no verdict would mean anything, so the round is undetermined).
        text: a sentence for people, with names and numbers.
    """

    code: Code
    class_: RemarkClass
    text: Text


def note(code: str, text: str) -> Remark:
    """A remark to know and not to act on."""
    return Remark(code, "note", text)


def warning(code: str, text: str) -> Remark:
    """A remark that somebody should act on."""
    return Remark(code, "warning", text)


def at_most(remarks: Sequence[Remark], what: str) -> list[Remark]:
    """Remarks of one kind for the report: the first of them, warnings before notes, and how many
    more. The last one is as bad as the worst that it stands for.

    >>> [remark.text for remark in at_most([note("x", "x")] * 22, "notes on modules")][19:]
    ['x', 'and 2 more notes on modules']
    """
    classes = get_args(RemarkClass)
    ordered = sorted(remarks, key=lambda r: -classes.index(r.class_))
    shown = [Remark(r.code, r.class_, shortened(r.text)) for r in ordered[:MAX_NOTES]]
    if rest := ordered[MAX_NOTES:]:
        shown.append(Remark("more", rest[0].class_, f"and {len(rest):,} more {what}"))
    return shown
