"""A finished run as a report, and its exit code."""

from __future__ import annotations

from dataclasses import replace

from clair_cli.report.model import MergedReport, RefinedClient, RefinedReport, Report
from clair_cli.settings import Settings
from clair_cli.version import __version__
from clair_cli.workflow.describe import (
    describe_clients,
    describe_cohort,
    describe_modules,
    number,
)
from clair_cli.workflow.judge import Judged
from clair_cli.workflow.merge_round import Merged
from clair_cli.workflow.refine import Refined


def exit_code(settings: Settings, judged: Judged) -> int:
    """The code of table "Exit codes": 4 before 5 before 3 before 0."""
    if judged.outcome == "refused":
        return 4
    if judged.outcome == "undetermined" and not settings.allow_undetermined:
        return 5
    if settings.fail_on == "never":
        return 0
    tripping = {"contaminated", "rejected"}
    if settings.fail_on == "suspicious":
        tripping.add("suspicious")
    return 3 if judged.verdicts & tripping else 0


def make_report(
    settings: Settings,
    judged: Judged,
    *,
    refined: Refined | None = None,
) -> Report:
    """Everything the run found, as the report holds it; what was merged is added later."""
    return Report(
        version=__version__,
        command=settings.command,
        options=settings.shown(),
        cohort=describe_cohort(judged),
        clients=describe_clients(judged),
        modules=describe_modules(judged),
        merged=None,
        refined=None if refined is None else _refined_report(settings, refined),
        warnings=judged.warnings,
        exit_code=exit_code(settings, judged),
    )


def with_merged(report: Report, settings: Settings, merged: Merged) -> Report:
    """The same report, with what was merged in it."""
    return replace(
        report,
        merged=_merged_report(settings, merged),
        warnings=report.warnings + merged.adapter.warnings,
    )


def _merged_report(settings: Settings, merged: Merged) -> MergedReport:
    adapter = merged.adapter
    return MergedReport(
        path=settings.shown_output or "",
        sha256=adapter.files.sha256,
        rank=adapter.rank,
        full_rank=adapter.full_rank,
        alpha=adapter.alpha,
        scaling=adapter.scaling,
        dtype=adapter.dtype,
        error=adapter.error,
        error_by_rank=adapter.error_by_rank,
        module_error_by_rank=adapter.module_error_by_rank,
        norm=adapter.norm,
        plain_mean_distance=number(merged.plain_mean_distance),
        config_sha256=adapter.files.config_sha256,
        format=adapter.format,
    )


def _refined_report(settings: Settings, refined: Refined) -> RefinedReport:
    folder = "" if settings.output is None else settings.output.as_posix()
    model = refined.model
    average = sum(model.variances) / len(model.variances) if model.known else None
    clients = tuple(
        RefinedClient(
            name=r.name,
            path=f"{folder}/{r.name}" if folder else "",
            sha256=r.adapter.files.sha256,
            rank=r.adapter.rank,
            error=r.adapter.error,
            changed=number(r.changed),
            local_error=None if r.gain is None else number(r.gain.local),
            refined_error=None if r.gain is None else number(r.gain.refined),
            gain=None if r.gain is None else number(r.gain.gain),
            kept_local=r.kept_local,
            config_sha256=r.adapter.files.config_sha256,
        )
        for r in refined.clients
    )
    return RefinedReport(
        path=folder,
        side=refined.side,
        why=refined.why,
        noise_from=model.source,
        noise=None if average is None else number(average**0.5),
        heterogeneity=number(model.heterogeneity),
        clients=clients,
        format=refined.clients[0].adapter.format if refined.clients else "peft",
    )
