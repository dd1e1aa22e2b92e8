"""`--verdicts`: merge exactly what was reviewed, by the verdicts of a report of these very clients.

Names and hashes of all clients, their scales and what is given beside them are compared with the
report; verdicts, reasons and weights are then the report's, which a person may have edited.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.model import Cohort
from clair_cli.cohort.round import Round
from clair_cli.errors import InputRefused, UsageError
from clair_cli.maths.judge.judge import MERGED, Judgement
from clair_cli.maths.judge.rounds import OverRounds
from clair_cli.maths.judge.verdicts import Finding, Verdict
from clair_cli.option import JUDGING, READING
from clair_cli.report.file import damaged, read_document
from clair_cli.report.load import report_from
from clair_cli.report.model import ClientReport, Report
from clair_cli.settings import DECIDED_BY_REPORT, Settings, options_of
from clair_cli.text import from_bytes, quoted
from clair_cli.version import __version__
from clair_cli.workflow.inputs import hashes_beside
from clair_cli.workflow.review import Decision

# Options that may differ from the reviewed run's: what it ends with, and what is compared by hash.
_FREE = {"fail_on", "strict", "min_clients", "limit", "allow_undetermined", "verdicts",
         "previous", "initial", "weights"}  # fmt: skip
_NOT_ALLOWED = ("allowed", "reviewed")  # codes of reasons that say that a person decided


@dataclass(frozen=True)
class Reviewed:
    """A report that decides.

    Attributes:
        shown: its path as given. sha256: of its bytes.
    """

    report: Report
    shown: str
    sha256: str

    @cached_property
    def clients(self) -> Mapping[str, ClientReport]:
        """By their real names."""
        each = self.report.clients
        return {from_bytes(c.name_bytes) if c.name_bytes else c.name: c for c in each}


def by_review(settings: Settings) -> Settings:
    """The settings with the report that `--verdicts` names, and what it decides of the options.

    Raises:
        UsageError: no such report, or it was made with other options that change the result.
    """
    if settings.verdicts is None:
        return settings
    path = settings.verdicts
    raw, data = read_document(path, __version__)
    try:
        report = report_from(data)
        reviewed = Reviewed(report, quoted(path.as_posix()), hashlib.sha256(raw).hexdigest())
        if len(reviewed.clients) < len(report.clients):
            raise ValueError("two clients have one name")
        theirs = _options(report)
    except (TypeError, ValueError, UsageError) as error:
        raise damaged(path, error) from None
    for name, option in options_of("inspect").items():
        recorded = option.kind.record(getattr(settings, name))
        if option.panel not in (JUDGING, READING) or name in {*_FREE, *DECIDED_BY_REPORT}:
            continue
        if name in theirs and option.kind.record(theirs[name]) != recorded:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"the report {reviewed.shown} was made with {flag} {quoted(theirs[name])}, and "
                f"this run has {quoted(recorded)}",
                hint=f"give {flag} as it was when the clients were reviewed",
            )
    decided = {n: theirs[n] for n in ("exclude", "minority", "fresh") if n in theirs}
    return replace(settings, reviewed=reviewed, **decided)


def _options(report: Report) -> dict[str, Any]:
    """The recorded options of judging and reading that are not paths, as values."""
    known = options_of("inspect")
    return {
        name: known[name].value(name, tuple(v) if isinstance(v, list) else v)
        for name, v in report.options.items()
        if name in known and name not in _FREE and name not in ("allow", "trust_adapter")
    }


def reviewed_cohort(
    settings: Settings, cohort: Cohort | InputRefused
) -> tuple[Settings, Cohort | InputRefused]:
    """The clients, if they are those of the report; else why they are refused. The settings get the
    report's trusted clients, by which groups are shown."""
    reviewed = settings.reviewed
    if reviewed is None or isinstance(cohort, InputRefused):
        return settings, cohort
    found: dict[str, str | None] = {a.name: a.sha256 for a in cohort.adapters}
    found |= {r.name: r.sha256 for r in cohort.rejected}
    wrong = next(_differences(reviewed, found), "")
    if wrong:
        return settings, InputRefused(wrong, hint=_AGAIN)
    if not any(c.verdict in MERGED for c in reviewed.clients.values()):
        text = f"the report {reviewed.shown} has no client that is to be merged"
        return settings, InputRefused(text, hint="edit the verdicts, or run without --verdicts")
    trust = tuple(name for name, c in reviewed.clients.items() if c.trusted)
    return replace(settings, trust=trust), cohort


_AGAIN = "review these clients with clair inspect, and give the new report"


def _differences(reviewed: Reviewed, found: Mapping[str, str | None]) -> Iterator[str]:
    """What is not as the report has it, in sentences, by client."""
    for name in sorted(found.keys() | reviewed.clients.keys()):
        who, client = f"client {quoted(name)}", reviewed.clients.get(name)
        if client is None:
            yield f"{who} is new: it is not in the report {reviewed.shown}"
        elif name not in found:
            yield f"{who} is in the report {reviewed.shown} and not here"
        elif client.sha256 != found[name]:
            theirs = f"the report {reviewed.shown} says {client.sha256}"
            yield f"{who} has sha256 {found[name]}, {theirs}"


def reviewed_round(settings: Settings, round_: Round) -> Round:
    """The round, refused if a client is rejected or scaled otherwise than when it was reviewed.

    Raises:
        UsageError: what is given beside the clients is not what it was.
    """
    reviewed = settings.reviewed
    if reviewed is None or round_.refusal is not None:
        return round_
    _check_beside(reviewed, hashes_beside(round_))
    rejected = {r.name: r.message for r in round_.rejected}
    for name, client in sorted(reviewed.clients.items()):
        judged = client.judged or client.verdict
        if name in rejected and judged != "rejected":
            text = f"client {quoted(name)} was not rejected in the report: {rejected[name]}"
            return replace(round_, refusal=InputRefused(text, hint=_AGAIN))
        if name not in rejected and judged == "rejected":
            text = f"client {quoted(name)} was rejected in the report, and is not now"
            return replace(round_, refusal=InputRefused(text, hint=_AGAIN))
        if name in rejected and client.verdict in MERGED:
            text = f"{rejected[name]}; so it can't be {client.verdict}, as the report says"
            return replace(round_, refusal=InputRefused(text, hint="leave it rejected there"))
    wrong = next(filter(None, (_other_scale(reviewed, a) for a in round_.adapters)), "")
    return replace(round_, refusal=InputRefused(wrong, hint=_AGAIN)) if wrong else round_


def _check_beside(reviewed: Reviewed, found: Mapping[str, str]) -> None:
    for name in ("previous", "initial", "weights"):
        theirs, ours = reviewed.report.inputs.get(name), found.get(name)
        if theirs != ours:
            flag = f"--{name}"
            raise UsageError(
                f"the report {reviewed.shown} was made "
                + (f"with {flag} of sha256 {theirs}" if theirs else f"without {flag}")
                + f", and this run has {'one of sha256 ' + ours if ours else 'none'}",
                hint=f"give {flag} as it was when the clients were reviewed",
            )


def _other_scale(reviewed: Reviewed, adapter: Adapter) -> str:
    """The sentence about a module that is scaled otherwise than in the report: the hash is of the
    weights alone. Of a minority's members, of which a part was merged, a report has no scale."""
    client = reviewed.clients[adapter.name]
    if reviewed.report.command == "merge" and client.verdict == "minority":
        return ""
    for name, module in adapter.modules.items():
        theirs = client.modules.get(name)
        if theirs is not None and theirs.scaling != module.scaling:
            return (
                f"client {quoted(adapter.name)}, module {quoted(name)}: scaled by "
                f"{module.scaling:g}, the report {reviewed.shown} says {theirs.scaling}"
            )
    return ""


def judgement_of(
    reviewed: Reviewed, judgement: Judgement, round_: Round, minority: str
) -> tuple[Judgement, dict[int, Decision]]:
    """The judgement with the report's verdicts in place of its own, and what was decided by the
    index of the client.

    Args:
        judgement: of these clients, for the numbers.
    """
    clients = [reviewed.clients[name] for name in round_.names]
    verdicts, decided = [], {}
    given = round_.weights or tuple(1.0 for _ in clients)
    kept = [c.weight / w if _is_kept(c) else 0.0 for c, w in zip(clients, given, strict=True)]
    largest = max(kept, default=0.0) or 1.0
    for k, client in enumerate(clients):
        own = judgement.verdicts[k] if judgement.verdicts else None
        if client.verdict == "minority" and minority != "merge":
            influence = _influence(own, "minority")
        elif _is_kept(client) or client.verdict not in MERGED:
            influence = kept[k] / largest
        elif client.verdict == "benign" and own is not None and own.verdict == "suspicious":
            influence = own.if_benign  # what made it suspicious was looked at
        else:
            influence = _influence(own, *MERGED)
        verdicts.append(_verdict(client, influence))
        judged = client.judged or client.verdict
        if judged != client.verdict:
            why = client.review
            more = () if why is None else (why.reason, why.by, why.until)
            decided[k] = Decision(judged, *more)
    found = replace(
        judgement, outcome="judged", code="judged", text="", remedy="", verdicts=tuple(verdicts)
    )
    return found, decided


def _is_kept(client: ClientReport) -> bool:
    """Whether a client has the weight that it had when it was reviewed: it is merged by the verdict
    that its numbers gave it, or by an allow list."""
    allowed = any(r.code in _NOT_ALLOWED for r in client.reasons)
    same = client.judged in (None, client.verdict) or allowed
    return same and client.verdict in (*MERGED, "minority")


def _influence(own: Verdict | None, *verdicts: str) -> float:
    """The part of its weight that a client gets whose verdict was edited: within the bounds of a
    suspicious one, unless its numbers say one of `verdicts`."""
    if own is None:
        return 1.0
    return own.influence if own.verdict in verdicts else own.if_merged


def _verdict(client: ClientReport, influence: float) -> Verdict:
    findings = tuple(Finding(r.code, r.text) for r in client.reasons)
    judged = client.judged or client.verdict
    if judged != client.verdict and not any(f.code in _NOT_ALLOWED for f in findings):
        why = "" if client.review is None else f": {client.review.reason} ({client.review.by})"
        text = f"edited by a person, else {judged}{why}"
        findings = (*findings, Finding("reviewed", text))
    p = math.nan if client.p_honest is None else client.p_honest
    return Verdict(
        client.verdict, findings, influence, p, client.confidence or "clear",
        over_rounds=_over_rounds(client),
    )  # fmt: skip


def _over_rounds(client: ClientReport) -> OverRounds | None:
    found = client.earlier
    if found is None:
        return None
    return OverRounds(
        found.rounds, found.loading, found.loading_se, found.p_honest, found.power, found.agrees,
        found.alone,
    )  # fmt: skip
