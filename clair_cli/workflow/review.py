"""What a person decided about clients, in place of the verdict that their numbers give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clair_cli.allowed import Allowed
from clair_cli.cohort.round import Round
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.verdicts import Finding, merged_anyway
from clair_cli.remark import Remark, at_most, note, warning
from clair_cli.text import by_spelling, quoted


@dataclass(frozen=True)
class Decision:
    """A person's word on one client.

    Attributes:
        judged: the verdict that the numbers give.
        reason, by: why, and who says so; "" where that is not known.
        until: the last day on which it holds, as YYYY-MM-DD, or "".
    """

    judged: str
    reason: str = ""
    by: str = ""
    until: str = ""


def allow(
    judgement: Judgement, round_: Round, entries: Sequence[Allowed]
) -> tuple[Judgement, dict[int, Decision], list[Remark]]:
    """Merge who is on the allow list and would be left out, as a suspicious client.

    Such a client has no part in what the others are judged by: it is lifted when they have been.

    Args:
        entries: of the allow list. Only an entry that has not expired, with the name and the hash
            of a comparable client, counts.

    Returns:
        The judgement, what was decided by the index of the client, and remarks on entries without
        effect.
    """
    verdicts, decided = list(judgement.verdicts), {}
    names = by_spelling(round_.names)
    for entry in entries:
        name = names.get(entry.client, entry.client)
        for k, adapter in enumerate(round_.adapters):
            if entry.expired or (adapter.name, adapter.sha256) != (name, entry.sha256):
                continue
            if judgement.outcome == "judged" and k not in decided:
                old, why = verdicts[k], f"{entry.reason} ({entry.by}, until {entry.until})"
                finding = Finding("allowed", f"allowed, else {old.verdict}: {why}")
                verdicts[k] = merged_anyway(old, finding)
                if verdicts[k] is not old:
                    decided[k] = Decision(old.verdict, entry.reason, entry.by, entry.until)
    found = replace(judgement, verdicts=tuple(verdicts))
    return found, decided, at_most(_without_effect(round_, entries), "remarks on the allow list")


def _without_effect(round_: Round, entries: Sequence[Allowed]) -> list[Remark]:
    """A remark on each entry that matches nobody."""
    spelt = by_spelling(round_.names)
    hashes: Mapping[str, str] = {a.name: a.sha256 for a in round_.adapters}
    rejected = {r.name for r in round_.rejected}
    matched = {e.client for e in entries if hashes.get(spelt.get(e.client, e.client)) == e.sha256}
    remarks = []
    for entry in entries:
        name, who = spelt.get(entry.client, entry.client), f"client {quoted(entry.client)}"
        if entry.expired:
            text = f"{who} was allowed until {entry.until}: review it again, or drop the entry"
            remarks.append(warning("allow_expired", text))
        elif name in rejected:
            text = f"{who} is on the allow list and rejected: what can't be read can't be merged"
            remarks.append(warning("allow_rejected", text))
        elif name not in hashes:
            remarks.append(note("allow_unmatched", f"{who} is on the allow list and not here"))
        elif entry.client not in matched:
            text = (
                f"{who} has another file than the allow list: sha256 {hashes[name]}, allowed is "
                f"{entry.sha256}"
            )
            remarks.append(warning("allow_changed", text))
    return remarks
