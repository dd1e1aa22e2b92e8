"""What a report says in sentences: its verdict in one line, the cohort and the result.

Names come from strangers and pass through `printable`. No rich here, whose import takes longer
than anything that is said.
"""

from __future__ import annotations

from collections.abc import Iterable

from clair_cli.report.cohort import CohortReport
from clair_cli.report.model import Report
from clair_cli.report.results import MergedReport
from clair_cli.text import printable
from clair_cli.words.doubts import doubts
from clair_cli.words.numbers import loss
from clair_cli.words.refined import refined_words
from clair_cli.words.steps import command_to_copy, next_steps
from clair_cli.words.sure import power_words

MAX_NAMES = 20  # in one sentence, and of groups

_AGREE = {
    "matrix": "the updates of {} point the same way",
    "output": "the updates of {} share an output subspace",
    "input": "the updates of {} share an input subspace",
}
_APART = {"other": "form a group of their own", "minority": "share what all others lack"}


def verdict_line(report: Report, *, report_path: str = "") -> str:
    """The verdict and what was written, in one sentence on one line (no newline)."""
    parts = [_verdict(report)]
    minority = report.with_verdict("minority")
    if minority:
        parts.append(f"{len(minority)} minority: {_names(c.name for c in minority)}")
    counts = [
        f"{len(report.with_verdict(verdict))} {verdict}"
        for verdict in ("suspicious", "duplicate", "rejected")
        if report.with_verdict(verdict)
    ]
    if counts:
        parts.append(", ".join(counts))
    written = _written(report)
    if written:
        parts.append(written)
    if report_path:
        parts.append(f"report in {printable(report_path)}")
    return "; ".join(parts)


def _verdict(report: Report) -> str:
    cohort = report.cohort
    if cohort.outcome != "judged":
        why = printable(cohort.outcome_text).rstrip(".")
        return f"{cohort.outcome}: {why}" if why else cohort.outcome
    contaminated = report.with_verdict("contaminated")
    text = f"{len(contaminated)} of {_count(cohort.n_clients, 'client')} contaminated"
    return f"{text}: {_names(c.name for c in contaminated)}" if contaminated else text


def _written(report: Report) -> str:
    if report.merged is not None:
        n_merged = sum(client.weight > 0 for client in report.clients)
        merged = report.merged
        error = "" if merged.error is None else f", error {merged.error:.2g}"
        into = f" into {printable(merged.path)}" if merged.path else ""
        into = " into standard output" if merged.path == "-" else into
        return f"merged {n_merged}{into} (rank {merged.rank}{error})"
    if report.refined is not None:
        into = f" into {printable(report.refined.path)}" if report.refined.path else ""
        return f"refined {len(report.refined.clients)}{into}"
    if report.command == "inspect":
        return ""
    verb = "merged" if report.command == "merge" else "refined"
    tripped = f" (--fail-on {_fail_on(report)})" if report.exit_code == 3 else ""
    return f"nothing {verb}{tripped}"


def _fail_on(report: Report) -> str:
    levels = report.options.get("fail_on")
    return ", ".join(map(str, levels)) if isinstance(levels, (list, tuple)) else str(levels)


def above(report: Report) -> list[str]:
    """The cohort: how many, who agrees with whom, which groups stand apart."""
    cohort = report.cohort
    clients = _count(cohort.n_clients, "client")
    if cohort.n_comparable != cohort.n_clients:
        clients += f" ({cohort.n_comparable} comparable)"
    if cohort.outcome == "refused":
        return [f"{clients}: not compared"]
    group = next((g for g in cohort.groups if g.role == "collaborative"), None)
    if group is None or cohort.stacking is None:
        found = ": no agreement found among them" if cohort.n_comparable > 2 else ""
        return [clients + found]
    level = "" if cohort.level is None else f" (similarity {_plus_minus(cohort)})"
    lines = [f"{clients}; {_AGREE[cohort.stacking].format(len(group.members))}{level}"]
    if cohort.power is not None:
        lines.append(power_words(report))
    others = [g for g in cohort.groups if g.role in _APART and len(g.members) > 1]
    for group in others[:MAX_NAMES]:
        names = _names(group.members)
        lines.append(f"{len(group.members)} {_APART[group.role]}: {names}")
    if len(others) > MAX_NAMES:
        lines.append(f"and {len(others) - MAX_NAMES:,} more groups")
    return lines


def _plus_minus(cohort: CohortReport) -> str:
    level, se = cohort.level or 0.0, cohort.level_se
    digits = 2 if level >= 0.1 else 3  # similarities of wide layers are small
    width = 0.0 if se is None else round(se, digits)
    return f"{level:.{digits}f}" + (f" +/- {width:.{digits}f}" if width else "")


def below(report: Report) -> list[str]:
    """The result, the warnings and what is unusual, each on a line."""
    lines = []
    if report.merged is not None:
        lines.append(_merged(report.merged))
    if report.refined is not None:
        lines.append(f"refined: {refined_words(report.refined)}")
    lines += remark_lines(report, notes=True)
    lines += [f"note: {text}" for text in doubts(report)]
    left_out = report.with_verdict("contaminated") + report.with_verdict("rejected")
    if left_out and report.exit_code == 0:
        lines.append(
            "note: exit code 0 although clients were left out; --fail-on contaminated makes it 3"
        )
    return lines


def steps(report: Report, report_path: str) -> tuple[list[str], str]:
    """What to do next, each on a line, details indented; and one command to copy, or ""."""
    found = next_steps(report, report_path=report_path)
    lines = ["next steps"]
    for step in found:
        lines.append(step.text)
        lines += [f"  {detail}" for detail in step.details]
    return lines, command_to_copy(found)


def short(report: Report, *, report_path: str = "") -> list[str]:
    """What must not be missed: warnings, what to do where they block the round, and the verdict;
    each on a line."""
    blocked = any(remark.class_ == "blocking" for remark in report.warnings)
    lines = remark_lines(report, notes=False) + (_what_to_do(report) if blocked else [])
    return [*lines, verdict_line(report, report_path=report_path)]


def remark_lines(report: Report, *, notes: bool) -> list[str]:
    """The remarks, each on a line that begins with its class.

    Args:
        notes: whether those of class `note` are among them.
    """
    return [
        f"{remark.class_}: {printable(remark.text)}"
        for remark in report.warnings
        if (notes or remark.class_ != "note") and remark.text != report.cohort.outcome_text
    ]  # the last line says the outcome


def _what_to_do(report: Report) -> list[str]:
    if not report.cohort.remedy or report.merged is not None or report.refined is not None:
        return []
    return [f"what to do: {printable(report.cohort.remedy)}"]


def _merged(merged: MergedReport) -> str:
    exact = merged.rank > merged.full_rank
    parts = [
        f"rank {merged.rank} ({merged.full_rank} needed)"
        if exact
        else f"rank {merged.rank} of {merged.full_rank}"
    ]
    if merged.error is not None:
        parts.append(f"writing it loses {loss(merged.error)} of the exact mean")
    parts.append(f"alpha {merged.alpha:g}, {printable(merged.dtype)}")
    if merged.heads:
        parts.append(f"{_count(len(merged.heads), 'tensor')} beside the LoRA averaged")
    if merged.plain_mean_distance is not None:
        away = loss(merged.plain_mean_distance)
        parts.append(
            "equal to the plain mean of all"
            if away == "0 %"
            else f"{away} away from the plain mean of all"
        )
    return "merged: " + "; ".join(parts)


def _names(names: Iterable[str]) -> str:
    """All names, or the first ones of very many (the table and the report have all)."""
    shown = [printable(name) for name in names]
    if len(shown) <= MAX_NAMES:
        return ", ".join(shown)
    return f"{', '.join(shown[:MAX_NAMES])} and {len(shown) - MAX_NAMES} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
