"""What changed between the reports of two rounds, client by client. Nothing is judged again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from clair_cli.report.model import VERDICTS, ClientReport, Report

SCHEMA = "clair.diff/1"
# A loading has changed if the difference is more than this many of its standard errors.
_CLEARLY = 3.0
# A second round has other outputs; and older reports say on which device they were made.
_NO_CHANGES = ("output", "report", "force", "device")

Kind = Literal["worse", "new", "gone", "better", "changed", "same"]
# In the order a reader wants them.
KINDS: tuple[Kind, ...] = ("worse", "new", "gone", "better", "changed", "same")


@dataclass(frozen=True)
class Side:
    """One client in one round; the fields are the report's."""

    verdict: str
    confidence: str | None
    weight: float
    loading: float | None
    loading_se: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ClientChange:
    """One client in both rounds.

    Attributes:
        kind: "new" or "gone" where it is in one of them only; "worse" or "better" by its verdict;
            "changed" with the same verdict and another confidence, other reasons, or a loading that
            is clearly another; else "same".
        before, after: in the first and the second report, or None.
        same_file: whether it sent the same weights file in both.
    """

    name: str
    kind: Kind
    before: Side | None
    after: Side | None
    same_file: bool


@dataclass(frozen=True)
class RoundSide:
    """One round as a whole; the fields are the report's, `verdicts` how many clients have each."""

    command: str
    outcome: str
    n_clients: int
    verdicts: Mapping[str, int]
    level: float | None
    power: float | None
    rank: int | None
    error: float | None


@dataclass(frozen=True)
class Changes:
    """Two rounds side by side.

    Attributes:
        clients: all clients of both, in the order of KINDS, then by name.
        options: options with other values in the second, by name: (before, after); None where a
            report has none. Outputs and the device do not count.
    """

    before: RoundSide
    after: RoundSide
    clients: tuple[ClientChange, ...]
    options: Mapping[str, tuple[object, object]]
    schema: str = SCHEMA


def compare(first: Report, second: Report) -> Changes:
    """What changed from the first report to the second; clients are told by their names."""
    old, new = _by_name(first), _by_name(second)
    clients = [_change(name, old.get(name), new.get(name)) for name in sorted(old | new)]
    names = sorted({*first.options, *second.options} - set(_NO_CHANGES))
    pairs = {name: (first.options.get(name), second.options.get(name)) for name in names}
    return Changes(
        _round(first),
        _round(second),
        tuple(sorted(clients, key=lambda change: KINDS.index(change.kind))),
        {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
    )


def changes_json(changes: Changes) -> str:
    """One JSON document, sorted keys and ASCII, as `report_json` writes its own."""
    text = json.dumps(asdict(changes), sort_keys=True, indent=2, allow_nan=False)
    return text.replace("##", "#\\u0023") + "\n"


def _by_name(report: Report) -> dict[str, ClientReport]:
    """Clients by name; of several that are spelt alike the first."""
    found: dict[str, ClientReport] = {}
    for client in report.clients:
        found.setdefault(client.name, client)
    return found


def _change(name: str, old: ClientReport | None, new: ClientReport | None) -> ClientChange:
    before, after = _side(old), _side(new)
    same_file = old is not None and new is not None and old.sha256 == new.sha256 is not None
    return ClientChange(name, _kind(before, after), before, after, same_file)


def _side(client: ClientReport | None) -> Side | None:
    if client is None:
        return None
    scores = client.scores
    return Side(
        client.verdict, client.sure or None, client.weight, scores.loading, scores.loading_se,
        tuple(reason.code for reason in client.reasons),
    )  # fmt: skip


def _kind(before: Side | None, after: Side | None) -> Kind:
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before.verdict != after.verdict:
        worse = VERDICTS.index(after.verdict) < VERDICTS.index(before.verdict)
        return "worse" if worse else "better"
    if (
        before.confidence != after.confidence
        or set(before.reasons) != set(after.reasons)
        or clearly_other(before, after)
    ):
        return "changed"
    return "same"


def clearly_other(before: Side, after: Side) -> bool:
    """Whether the loading changed by more than its errors explain."""
    if before.loading is None or after.loading is None:
        return (before.loading is None) != (after.loading is None)
    error = math.hypot(before.loading_se or 0.0, after.loading_se or 0.0)
    return abs(after.loading - before.loading) > _CLEARLY * error


def _round(report: Report) -> RoundSide:
    cohort, merged = report.cohort, report.merged
    counts = {verdict: len(report.with_verdict(verdict)) for verdict in VERDICTS}
    return RoundSide(
        report.command, cohort.outcome, cohort.n_clients,
        {verdict: count for verdict, count in counts.items() if count}, cohort.level, cohort.power,
        None if merged is None else merged.rank, None if merged is None else merged.error,
    )  # fmt: skip
