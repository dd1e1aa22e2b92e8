"""A round from its clients to what is made of it; the commands write that down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from clair_cli.cohort.model import Cohort, Rejection
from clair_cli.cohort.round import ClientLost, ClientsUnfit, Round, load_round, rejection_of
from clair_cli.engine.cluster import on_ray
from clair_cli.engine.device import choose_device, warm_up
from clair_cli.engine.engine import Engine, make_engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.engine.threads import one_thread_each
from clair_cli.errors import InputRefused, UsageError
from clair_cli.output.adapter_files import AdapterFiles
from clair_cli.report.model import Report
from clair_cli.settings import Settings
from clair_cli.store.address import RemotePath
from clair_cli.workflow.by_report import by_review, reviewed_cohort, reviewed_round
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.judge import JudgedRound, judge_round, refused, refused_if_empty
from clair_cli.workflow.memory_estimate import check_memory, read_memory, work_memory
from clair_cli.workflow.merge import merge_round
from clair_cli.workflow.outputs import check_least_room
from clair_cli.workflow.read import read_cohort, with_earlier_reports
from clair_cli.workflow.refine import Refined, refine_round
from clair_cli.workflow.report import exit_code, make_report
from clair_cli.workflow.shared_part import merge_shared_parts
from clair_cli.workflow.weight_cap import cap_weights, check_most
from clair_cli.workflow.write import WrittenAdapter


def prepare(settings: Settings) -> None:
    """What the device needs before its first work.

    Raises:
        UsageError: it is not there.
    """
    if not on_ray(settings):
        warm_up(choose_device(settings.device))


def inspect_cohort(settings: Settings, cohort: Cohort | InputRefused) -> Report:
    """Judge the clients and merge nothing."""
    judged, _ = run_round(settings, cohort, None)
    return make_report(settings, judged)


def merge_cohort(
    settings: Settings, cohort: Cohort | InputRefused, destination: Destination
) -> tuple[Report, WrittenAdapter | None]:
    """Judge the clients and merge the benign ones; see `merge_round`."""
    judged, merged = run_round(settings, cohort, partial(merge_round, destination=destination))
    if merged is not None:
        judged = replace(judged, warnings=judged.warnings + merged.plan.warnings)
        if exit_code(settings, judged) != 0:  # what was found while it was made
            merged = None
    return make_report(settings, judged, merged=merged), merged


def refine_cohort(
    settings: Settings, cohort: Cohort | InputRefused, destination: Destination
) -> tuple[Report, Refined | None]:
    """Judge the clients and refine the benign ones; see `refine_round`."""
    judged, refined = run_round(settings, cohort, partial(refine_round, destination=destination))
    if refined is not None:
        judged = replace(judged, warnings=judged.warnings + refined.warnings)
        if exit_code(settings, judged) != 0:
            refined = None
    return make_report(settings, judged, refined=refined), refined


def do_again(
    settings: Settings, *, one_file: bool, version: str | None
) -> tuple[Report, dict[str, AdapterFiles]]:
    """Merge or refine, and write nothing: the report, and the adapters by client's folder.

    Args:
        one_file: whether the merged adapter is to be a single file; its folder is "".
        version: of clair, for a header; None for one without.
    """
    settings = by_review(with_earlier_reports(settings))
    nowhere = Destination(one_file=one_file, in_folder=not one_file, version=version)
    if settings.command == "refine":
        report, refined = refine_cohort(settings, read_cohort(settings), nowhere)
        return report, {} if refined is None else refined.files
    report, merged = merge_cohort(settings, read_cohort(settings), nowhere)
    return report, {} if merged is None else {"": merged.files}


Made = TypeVar("Made")


def run_round(
    settings: Settings,
    cohort: Cohort | InputRefused,
    make: Callable[[JudgedRound, RoundFactors, Settings, Engine], Made] | None,
) -> tuple[JudgedRound, Made | None]:
    """Read, judge and make. A client whose file changes on the way, or whose factors can't be
    relied on, is rejected and the round starts again without it, so that the merged clients are
    the judged ones.

    Args:
        make: called where the exit code will be 0; None to judge alone.
    """
    settings, cohort = reviewed_cohort(settings, cohort)
    dropped: list[Rejection] = []
    with one_thread_each(), contextlib.closing(make_engine(settings)) as engine:
        while True:
            round_ = reviewed_round(settings, load_round(settings, cohort, dropped))
            try:
                return _try_round(round_, settings, engine, make)
            except ClientsUnfit as unfit:
                dropped += unfit.rejections
            except ClientLost as lost:
                for option, own in round_.given_beside.items():
                    if lost.adapter is own:
                        raise UsageError(f"{option}: {lost.error.message}") from None
                dropped.append(rejection_of(lost.error, lost.adapter))
                if not isinstance(settings.clients, RemotePath):  # whose reads are all pinned
                    cohort = read_cohort(settings)


def _try_round(
    round_: Round,
    settings: Settings,
    engine: Engine,
    make: Callable[[JudgedRound, RoundFactors, Settings, Engine], Made] | None,
) -> tuple[JudgedRound, Made | None]:
    """One round, of which no client may turn out unfit.

    Raises:
        ClientLost, ClientsUnfit: one did.
    """
    if round_.refusal is not None:
        return refused(round_), None
    check_most(settings.max_weight, len(round_.adapters), "given")
    needed = work_memory(round_, engine)
    engine.progress("memory", read_memory(round_) + needed, 0)
    check_memory(round_, engine, needed)
    if make is not None:
        check_least_room(settings, round_.usual_shapes)
    factors = engine.load(round_)
    judged = judge_round(factors, engine, settings)
    judged = cap_weights(judged, settings.max_weight, _merged_later(judged, settings))
    if make is None:
        return judged, None
    judged = refused_if_empty(judged)
    if exit_code(settings, judged) != 0:
        return judged, None
    if settings.command == "merge" and settings.minority == "shared" and judged.minority:
        judged = merge_shared_parts(judged, factors, engine)
        judged = cap_weights(judged, settings.max_weight)
    return judged, make(judged, factors, settings, engine)


def _merged_later(judged: JudgedRound, settings: Settings) -> int:
    """How many members of minorities get a weight when what they share with others is merged."""
    if settings.minority != "shared" or settings.command == "refine":
        return 0
    return sum(judged.ordinary_weights[k] > 0 for k in judged.minority)
