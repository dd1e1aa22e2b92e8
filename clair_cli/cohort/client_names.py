"""Clients' names: distinct ones, those that are much alike, and those a user gives."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from clair_cli.cohort.model import Candidate
from clair_cli.errors import UsageError
from clair_cli.remark import Remark, at_most, warning
from clair_cli.text import by_spelling, escaped, quoted, some_of


def excluded_names(given: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    r"""The clients to leave out, sorted by the bytes of their names.

    Args:
        given: by the user; a name that is not UTF-8 may be spelt as the report does (`\xNN` for
            each such byte), where nobody else is called so.
        names: all clients'.

    Raises:
        UsageError: nobody is called so.
    """
    spelt = by_spelling(names)
    excluded = [spelt.get(name, name) for name in given]
    for name in excluded:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"no client is called {quoted(name)}, so it can't be excluded",
                hint=f"did you mean {quoted(close[0])}?" if close else "",
            )
    return tuple(sorted(set(excluded), key=os.fsencode))


def distinct_names(candidates: list[Candidate]) -> list[Candidate]:
    """Give clients of equal name their full entry names (unique within a folder)."""
    while True:
        counts = Counter(candidate.name for candidate in candidates)
        clashing = [c.name != c.entry and counts[c.name] > 1 for c in candidates]
        if not any(clashing):
            return sorted(candidates, key=lambda c: os.fsencode(c.name))
        candidates = [
            replace(c, name=c.entry) if clash else c
            for c, clash in zip(candidates, clashing, strict=True)
        ]


def similar_names(names: Iterable[str]) -> list[Remark]:
    """One note for each group of names that differ only in case or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    notes = []
    for group in groups.values():
        if len(group) > 1:
            listed = some_of([escaped(name) for name in sorted(group)])
            notes.append(f"clients {listed}: names differ only in case or Unicode form")
    found = [warning("similar_names", text) for text in sorted(notes)]
    return at_most(found, "groups of clients whose names differ only in this")
