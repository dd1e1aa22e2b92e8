"""A finished run as a report, and its exit code."""

from __future__ import annotations

import math

import torch

from clair_cli.maths.merge.mean import plain_distance
from clair_cli.pipeline_options import FAIL_LEVELS, at_least
from clair_cli.report.model import Report
from clair_cli.report.results import MergedReport, RefinedClient, RefinedReport
from clair_cli.settings import Settings
from clair_cli.version import __version__
from clair_cli.workflow.describe import (
    describe_clients,
    describe_cohort,
    describe_heads,
    describe_modules,
    number,
)
from clair_cli.workflow.earlier import hashes_of_earlier
from clair_cli.workflow.inputs import hashes_beside
from clair_cli.workflow.judge import JudgedRound
from clair_cli.workflow.refine import Refined
from clair_cli.workflow.write import WrittenAdapter


def exit_code(settings: Settings, judged: JudgedRound) -> int:
    """The code of table "Exit codes": 4 before 5 before 3 before 0."""
    if judged.outcome == "refused":
        return 4
    if judged.outcome == "undetermined" and not settings.allow_undetermined:
        return 5
    return 3 if any(_trips(level, judged) for level in settings.fail_on) else 0


def _trips(level: str, judged: JudgedRound) -> bool:
    """Whether something in the round is as bad as one `--fail-on` says, or worse."""
    if level == "never":
        return False
    if level == "rejected":
        return bool(judged.round.rejected)
    if level not in FAIL_LEVELS:
        return _trips_number(level, judged)
    remarked = level == "warning" and any(r.class_ != "note" for r in judged.warnings)
    tripping = {"rejected", *FAIL_LEVELS[FAIL_LEVELS.index(level) :]}
    return remarked or bool(judged.verdicts & tripping)


def _trips_number(level: str, judged: JudgedRound) -> bool:
    """The same of "N" or "N%" of all clients found, contaminated and rejected ones together."""
    bad, judgement = len(judged.round.rejected), judged.judgement
    if judgement is not None and judgement.outcome == "judged":
        bad += sum(found.verdict == "contaminated" for found in judgement.verdicts)
    return at_least(level, bad, len(judged.round.rejected) + len(judged.round.adapters))


def make_report(
    settings: Settings,
    judged: JudgedRound,
    *,
    merged: WrittenAdapter | None = None,
    refined: Refined | None = None,
) -> Report:
    """A whole run as the report holds it."""
    return Report(
        version=__version__,
        command=settings.command,
        options=settings.shown(),
        cohort=describe_cohort(judged),
        clients=describe_clients(judged),
        modules=describe_modules(judged),
        merged=None if merged is None else _merged_report(settings, judged, merged),
        refined=None if refined is None else _refined_report(settings, refined),
        warnings=judged.warnings,
        exit_code=exit_code(settings, judged),
        inputs=_inputs(settings, judged),
    )


def _inputs(settings: Settings, judged: JudgedRound) -> dict[str, str]:
    """Hashes of the inputs beside the clients that change the result, by option."""
    found = hashes_beside(judged.round)
    if settings.reviewed is not None:
        return found | {"verdicts": settings.reviewed.sha256}
    return found | hashes_of_earlier(settings, judged.round)


def _merged_report(
    settings: Settings, judged: JudgedRound, adapter: WrittenAdapter
) -> MergedReport:
    plan = adapter.plan
    return MergedReport(
        path=settings.shown_output or "",
        sha256=adapter.files.sha256,
        rank=plan.cut.rank,
        full_rank=plan.full_rank,
        alpha=plan.scale.alpha,
        scaling=plan.scale.scaling,
        dtype=plan.cut.dtype,
        error=adapter.error,
        error_by_rank=plan.error_by_rank,
        module_error_by_rank=plan.module_error_by_rank,
        norm=plan.norm,
        plain_mean_distance=number(_plain_mean_distance(judged)),
        config_sha256=adapter.files.config_sha256,
        format=adapter.format,
        heads=describe_heads(adapter.heads),
    )


def _plain_mean_distance(judged: JudgedRound) -> float | None:
    """Distance of the merged delta weights to the plain mean of all comparable clients, over the
    norm of the latter; from the pairs' inner products in every module. None for a zero mean."""
    evidence = judged.evidence
    assert evidence is not None
    distance = size = 0.0
    merged, nothing = set(judged.merged_modules), [0.0] * len(judged.weights)
    for name, inner in zip(judged.round.module_shapes, evidence.inner_products(), strict=True):
        weights = list(judged.weights) if name in merged else nothing
        plain = list(judged.plain_weights)
        if name in judged.projected:  # they are merged in place of their clients' delta weights
            projected, members = judged.projected[name], list(judged.minority)
            inner = torch.cat([
                torch.cat([inner, projected.mT], dim=1),
                torch.cat([projected, projected[:, members]], dim=1),
            ])  # fmt: skip
            weights += [weights[k] for k in members]
            plain += [0.0 for _ in members]
            for k in members:
                weights[k] = 0.0
        moved, norm = plain_distance(inner, weights, plain)
        distance, size = math.hypot(distance, moved), math.hypot(size, norm)
    return distance / size if size > 0 else None


def _refined_report(settings: Settings, refined: Refined) -> RefinedReport:
    folder = "" if settings.output is None else settings.output.as_posix()
    model = refined.model
    average = sum(model.variances) / len(model.variances) if model.known else None
    clients = tuple(
        RefinedClient(
            name=r.name,
            path=f"{folder}/{r.name}" if folder else "",
            sha256=r.adapter.files.sha256,
            rank=r.adapter.plan.cut.rank,
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
        heads=describe_heads(refined.heads),
    )
