"""What changed between two rounds, in lines for people."""

from __future__ import annotations

from clair_cli.report.changes import Changes, ClientChange, RoundSide, Side
from clair_cli.text import printable, quoted
from clair_cli.words.clients import names
from clair_cli.words.numbers import loss, percent

_HEADINGS = {
    "worse": "Worse than before:",
    "new": "New:",
    "gone": "Not in this round:",
    "better": "Better than before:",
    "changed": "Same verdict, and yet other than before:",
}
_MOST_OPTIONS = 20


def change_lines(changes: Changes) -> list[str]:
    """The round, the clients of each kind, who is as before, and who sent the same file again; safe
    to print."""
    before, after = changes.before, changes.after
    lines = [f"before: {_round(before)}", f"now:    {_round(after)}"]
    differing = list(changes.options.items())
    for name, (old, new) in differing[:_MOST_OPTIONS]:
        lines.append(f"option {printable(name)}: {_value(old)} before, {_value(new)} now")
    if len(differing) > _MOST_OPTIONS:
        lines.append(f"and {len(differing) - _MOST_OPTIONS:,} more options")
    for kind, heading in _HEADINGS.items():
        found = [client for client in changes.clients if client.kind == kind]
        if found:
            lines += ["", heading, *(f"  {_client(client)}" for client in found)]
    same = tuple(client.name for client in changes.clients if client.kind == "same")
    again = tuple(sorted(client.name for client in changes.clients if client.same_file))
    lines += ["", f"{_count(same)} as before: {names(same)}"] if same else []
    if again:
        lines += ["", f"{_count(again)} sent the same weights file again: {names(again)}"]
    return lines


def _count(found: tuple[str, ...]) -> str:
    return "1 client" if len(found) == 1 else f"{len(found):,} clients"


def _round(side: RoundSide) -> str:
    text = f"{side.n_clients} client{'s'[: side.n_clients != 1]}"
    if side.outcome != "judged":
        text += f", {side.outcome}"
    counts = [f"{count} {verdict}" for verdict, count in side.verdicts.items()]
    text += f": {', '.join(counts)}" if counts else ""
    if side.rank is not None:
        lost = "" if side.error is None else f", which loses {loss(side.error)}"
        text += f"; merged at rank {side.rank}{lost}"
    return text


def _client(change: ClientChange) -> str:
    name, before, after = printable(change.name), change.before, change.after
    if before is None or after is None:
        side = after or before
        assert side is not None
        return f"{name}: {'' if after else 'was '}{_verdict(side)}{_why(side.reasons)}"
    if before.verdict != after.verdict:
        parts = [f"{_verdict(before)} before, {_verdict(after)} now{_why(after.reasons)}"]
    elif before.confidence != after.confidence:
        parts = [f"{_verdict(before)} before, {after.confidence or 'not known'} now"]
    else:
        parts = [after.verdict]
    if before.verdict == after.verdict and set(before.reasons) != set(after.reasons):
        old, new = (_why(side.reasons).strip(" ()") or "no reason" for side in (before, after))
        parts.append(f"{old} before, {new} now")
    share = _share(before, after)
    if share:
        parts.append(share)
    if _weight(before) != _weight(after):
        parts.append(f"weight {_weight(before)} before, {_weight(after)} now")
    return f"{name}: {'; '.join(parts)}"


def _verdict(side: Side) -> str:
    return side.verdict + (f" ({side.confidence})" if side.confidence else "")


def _why(codes: tuple[str, ...]) -> str:
    shown = ", ".join(printable(code).replace("_", " ") for code in dict.fromkeys(codes))
    return f" ({shown})" if shown else ""


def _share(before: Side, after: Side) -> str:
    if before.loading is None or after.loading is None:
        return ""
    old, new = percent(before.loading), percent(after.loading)
    return f"{old} before and {new} now of what two of the others share" if old != new else ""


def _weight(side: Side) -> str:
    return f"{100 * side.weight:.1f} %" if side.weight > 0 else "none"


def _value(value: object) -> str:
    if value is None:
        return "not given"
    return quoted(value, 60) if isinstance(value, str) else printable(quoted(value, 60))
