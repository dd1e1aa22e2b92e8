"""What to do next, after every outcome: sentences, and for each a command to copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clair_cli.report.model import ClientReport, Report
from clair_cli.text import printable
from clair_cli.words.clients import company, names, own_group
from clair_cli.words.command import again, command_line
from clair_cli.words.outcomes import OUTCOMES, outcome_code
from clair_cli.words.reasons import explain_client, explain_reason

_TOGETHER = "the others named here"
# Options that a rejected client's reason may name, and what they are in a report's options.
_REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "--checkpoint last": {"checkpoint": "last"},
    "--assume-alpha": {"assume_alpha": "rank"},
}
# Options of judging whose files a report has the hashes of alone: `clair verify` wants them again.
_GIVEN_AGAIN = ("weights", "previous", "earlier", "initial", "trust_adapter", "verdicts")
MAX_DETAILS = 8  # kinds of reasons that are told for one verdict


@dataclass(frozen=True)
class Step:
    """Something to do.

    Attributes:
        about: an outcome or verdict: "refused", "undetermined", "contaminated", "minority",
            "suspicious", "rejected", "duplicate", or "benign" for the result itself.
        text: whole sentences, safe to print.
        details: why, and what to ask whom: one for all clients of the same reasons.
        command: to copy into a shell; "" where nothing can be offered.
    """

    about: str
    text: str
    details: tuple[str, ...] = ()
    command: str = ""


def next_steps(report: Report, *, report_path: str = "") -> list[Step]:
    """What to do about what was found, the most important first; at least one.

    Args:
        report_path: where the JSON report is, as the user would type it, or "".
    """
    each = (_finding(verdict, report, report_path) for verdict in _FINDINGS)
    steps = [step for step in (_whole_round(report, report_path), *each) if step is not None]
    made = report.merged is not None or report.refined is not None
    if not steps or (made and report.cohort.outcome == "judged"):
        steps.append(_benign(report, report_path, found=bool(steps)))
    return steps


def command_to_copy(steps: Sequence[Step]) -> str:
    """The first command among some steps, or ""."""
    return next((step.command for step in steps if step.command), "")


def _whole_round(report: Report, report_path: str) -> Step | None:
    """The step of a round that is not judged."""
    code, cohort = outcome_code(report), report.cohort
    if not code:
        return None
    remedy = printable(cohort.remedy).rstrip(".")
    remedy = f" What to do: {remedy}." if remedy else ""
    if code == "refused":
        text = "refused: the clients were not compared." + remedy
        command = _same_again(report) or _explain(report, report.clients, report_path)
        return Step("refused", text, _grouped(report, "rejected"), command)
    known = OUTCOMES[code]
    if report.merged is not None or report.refined is not None:
        text = f"undetermined, and all are merged (--allow-undetermined): {known.what}."
        return Step("undetermined", f"{text} {known.ask}")
    text = f"undetermined: {known.what}. {known.ask}{remedy}"
    found = _grouped(report, "undetermined") if code == "too_few_left" else ()
    return Step("undetermined", text, found, _without_verdict(report, code, report_path))


def _without_verdict(report: Report, code: str, report_path: str) -> str:
    """The command for a round that can't be judged: once more, with what was missing."""
    changes: Mapping[str, Mapping[str, Any]] = {
        "same_start": {"previous": "PREVIOUS.safetensors"},
        "previous_cancels": {"previous": None, "initial": None},
        "previous_absent": {"previous": None, "initial": None},
        "heads_unrelated": {"heads": "drop"},
    }
    if code == "too_few_left":
        return _explain(report, [c for c in report.clients if c.reasons], report_path)
    if code == "two_groups":
        apart = [c for c in report.clients if company(c, report)]
        return _explain(report, apart or report.clients, report_path)
    return _same_again(report, changes.get(code))


def _same_again(report: Report, changes: Mapping[str, Any] | None = None) -> str:
    """The run of the report once more; what it wrote is replaced."""
    output = str(report.options.get("output") or "")
    if output == "-":
        return ""
    command = again(report, report.command, output, changes)
    made = report.merged is not None or report.refined is not None
    there = made or (report.command == "inspect" and output)
    return f"{command} --force" if command and there else command


def _finding(verdict: str, report: Report, report_path: str) -> Step | None:
    """The step of all clients of one verdict."""
    found = report.with_verdict(verdict)
    refused = report.cohort.outcome == "refused"  # which says of its own who was rejected
    if not found or (verdict == "rejected" and refused):
        return None
    command = _remedied(report, found) if verdict == "rejected" else ""
    command = command or _explain(report, found, report_path)
    text = f"{verdict}: {_who(found)}. {_FINDINGS[verdict](report)}"
    return Step(verdict, text, _grouped(report, verdict), command)


def _contaminated(report: Report) -> str:
    return (
        f"{_capital(_left_out(report))}. That is no accusation: from weights alone, honest data"
        " that share nothing with the others' look the same."
    )


def _left_out(report: Report) -> str:
    if report.refined is not None:
        return "left out"
    return "a merge leaves them out" if report.merged is None else "left out of the merge"


def _minority(report: Report) -> str:
    merged = any(client.weight > 0 for client in report.with_verdict("minority"))
    part = "merged in the part that they share with the others" if merged else _left_out(report)
    part = "merged as benign clients" if report.options.get("minority") == "merge" else part
    return (
        f"{_capital(part)}. Look at their data, then choose --minority merge or --minority exclude."
    )


_FINDINGS: Mapping[str, Callable[[Report], str]] = {
    "contaminated": _contaminated,
    "minority": _minority,
    "suspicious": lambda _: (
        "A merge gives each at most a typical client's weight. Have a look; --exclude NAME leaves"
        " one out."
    ),
    "rejected": lambda _: "In no merge, as the files can't be used.",
    "duplicate": lambda _: "The same update as another client's, so no vote of its own.",
}
"""What is said of each verdict's clients, in the order in which a reader wants it."""


def _remedied(report: Report, rejected: Sequence[ClientReport]) -> str:
    """The run once more with the option that the clients' reasons name, else without them."""
    names_ = [client.name for client in rejected]
    without = _same_again(report, {"exclude": names_}) if len(names_) <= MAX_DETAILS else ""
    return _with_remedy(report, rejected) or without


def _with_remedy(report: Report, rejected: Sequence[ClientReport]) -> str:
    """The run once more with the option that most of the clients' reasons name, or ""."""
    texts = [reason.text for client in rejected for reason in client.reasons]
    for words, changes in _REMEDIES.items():
        if 2 * sum(words in text for text in texts) > len(texts):
            return _same_again(report, changes)
    return ""


def _verify(report: Report, path: str, report_path: str, *, clients: bool) -> str:
    """The command that compares a result with its report, and, where it can, with the clients; ""
    where one of them is in no file.

    Args:
        path: of the result.
        clients: whether it is made again from the clients. What they were compared with is then to
            be given again.
    """
    if path in ("", "-") or report_path == "-":
        return ""
    inputs = {name: str(report.options.get(name) or "") for name in ("clients", *_GIVEN_AGAIN)}
    words = ["clair", "verify", path]
    if clients and inputs["clients"] and "(in memory)" not in inputs.values():
        words.append(inputs.pop("clients"))
        for name, value in inputs.items():
            words += [f"--{name.replace('_', '-')}", value] if value else []
    beside = (f"{path}/report.json", f"{path[: -len('.safetensors')]}.report.json")
    if report_path and report_path not in beside:
        words += ["--report", report_path]
    return command_line(*words)


def _benign(report: Report, report_path: str, *, found: bool = False) -> Step:
    """The step of what was made, or can be.

    Args:
        found: whether there is something to look at first.
    """
    n_warnings = sum(remark.class_ == "warning" for remark in report.warnings)
    first = "" if found else "Nothing to look at. "
    if n_warnings:
        first = f"Read the {'warning' if n_warnings == 1 else 'warnings'} first. "
    if report.merged is not None:
        text = (
            f"{first}The merged adapter is ready to use; in the next round, where all start from"
            " it, give it with --previous."
        )
        command = _verify(report, report.merged.path, report_path, clients=True)
        return Step("benign", text, (), command)
    if report.refined is not None:
        text = f"{first}Give each client its refined adapter."
        command = _verify(report, report.refined.path, report_path, clients=False)
        return Step("benign", text, (), command)
    command = again(report, "merge", "merged.safetensors")
    return Step("benign", f"{first}The clients can be merged.", (), command)


def step_for(client: ClientReport, report: Report) -> Step:
    """What to do about one client, when its reasons are known; the command acts on the answer."""
    about = client.verdict
    if about == "rejected":
        command = _with_remedy(report, [client])
        if command:
            return Step(about, "If that is what you want, run it again so:", (), command)
        return Step(about, "When that is mended, judge again:", (), _same_again(report))
    if about == "suspicious":
        command = _same_again(report, {"exclude": [client.name]})
        return Step(about, "If what you hear does not convince you, leave it out:", (), command)
    if about == "minority":
        command = _same_again(report, {"minority": "exclude"})
        return Step(about, "If it is no honest data of another kind, leave the minority out"
                    " (else --minority merge):", (), command)  # fmt: skip
    if about == "benign":
        return Step(about, "Nothing has to be done.")
    if about == "undetermined":
        remedy = printable(report.cohort.remedy).rstrip(".")
        apart = () if outcome_code(report) != "two_groups" else own_group(client, report)
        changes = {"exclude": list(apart)} if 0 < len(apart) <= MAX_DETAILS else None
        text = "If it is its group that is wrong, leave that out:" if changes else ""
        text = text or f"The round needs this: {remedy or 'see its other clients'}."
        return Step(about, text, (), _same_again(report, changes))
    return Step(about, "When it has sent another adapter, judge again:", (), _same_again(report))


def _who(found: Sequence[ClientReport]) -> str:
    return names([client.name for client in found], 20)


def _explain(report: Report, found: Sequence[ClientReport], report_path: str) -> str:
    """`clair explain` of the first client whose name can be typed."""
    for client in found:
        if report_path and report_path != "-":
            command = command_line("clair", "explain", client.name, "--report", report_path)
        else:
            command = again(report, "inspect", "report.json")
        if command:
            return command
    return ""


def _grouped(report: Report, verdict: str) -> tuple[str, ...]:
    """Why, and what to ask, of all clients of one verdict: those of one reason together, whose
    numbers the table has."""
    groups: dict[tuple[tuple[str, str], ...], list[ClientReport]] = {}
    for client in report.with_verdict(verdict):
        said = [explain_reason(client, r, report, others=_TOGETHER) for r in client.reasons]
        if said:
            groups.setdefault(tuple((s.what, s.ask) for s in said), []).append(client)
    lines = []
    for parts, clients in groups.items():
        if len(clients) == 1:
            lines.append(_alone(clients[0], report))
            continue
        found = [client.name for client in clients]
        who = names(found) if len(found) <= 3 else f"{len(found):,} clients ({names(found)})"
        lines.append(f"{who}, each: " + " ".join(f"{what}. {ask}".rstrip() for what, ask in parts))
    more = len(lines) - MAX_DETAILS
    if more > 1:
        lines[MAX_DETAILS:] = [f"and {more:,} more reasons: clair explain says each"]
    return tuple(lines)


def _alone(client: ClientReport, report: Report) -> str:
    said = " Besides, ".join(s.line for s in explain_client(client, report))
    return f"{printable(client.name)}: {said}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
