"""What helps where clients are rejected for one reason, and how their notes are told together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.model import Rejection
from clair_cli.remark import Remark, at_most
from clair_cli.text import MAX_NOTES, first_few, quoted, some_of

_MEND = "mend it in all of them"
SHOWN = 10  # texts of notes that are told together
TOLD_TOGETHER = 3  # notes of one kind with different texts; more than these are one


def way_out(rejected: Sequence[Rejection]) -> str:
    """What to do about the rejected clients: where more than half of several are rejected for one
    reason, that and its own remedy.

    Args:
        rejected: at least one.
    """
    kinds: dict[tuple[str, ...], list[Rejection]] = defaultdict(list)
    for one in rejected:
        kinds[(one.hint,) if one.hint else (one.found, one.expected)].append(one)
    key, same = max(kinds.items(), key=lambda item: (len(item[1]), item[0]))
    if len(same) < 2 or 2 * len(same) <= len(rejected) or not any(key):
        return "mend the rejected clients"
    said = [f"found {same[0].found}" if same[0].found else "see the table"]
    said += [f"expected {same[0].expected}"] if same[0].expected else []
    alike = len({(one.found, one.expected) for one in same}) == 1
    reason = ", ".join(said) if alike else f"{quoted(same[0].name)}: {', '.join(said)}"
    who = (
        f"all {len(same):,}"
        if len(same) == len(rejected)
        else f"{len(same):,} of {len(rejected):,}"
    )
    return f"{who} were rejected for one reason ({reason}): {same[0].hint or _MEND}"


def notes_on_clients(adapters: Sequence[Adapter]) -> list[Remark]:
    """The notes on clients; equal notes on several clients are one, and so are many of one kind."""
    holders: dict[Remark, list[str]] = defaultdict(list)
    for adapter in adapters:
        for remark in adapter.notes:
            holders[remark].append(adapter.name)
    kinds: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in holders:
        kinds[remark.code, remark.class_].append(remark)
    notes = []
    for remarks in kinds.values():
        if len(remarks) > TOLD_TOGETHER:
            notes.append(_together(remarks, holders))
            continue
        for remark in remarks:
            names = holders[remark]
            clients = f"client{'s'[: len(names) > 1]} {first_few(names, MAX_NOTES)}"
            notes.append(replace(remark, text=f"{clients}: {remark.text}"))
    return at_most(notes, "notes on clients")


def _together(remarks: Sequence[Remark], holders: dict[Remark, list[str]]) -> Remark:
    """One remark for several of a kind, whose texts differ: who they are on, and some of them."""
    names = sorted({name for remark in remarks for name in holders[remark]})
    each = sorted((min(holders[remark]), remark.text) for remark in remarks)
    told = some_of([f"{quoted(name)}: {text}" for name, text in each], SHOWN)
    return replace(remarks[0], text=f"{len(names):,} clients: {told}")
