"""A round from its clients to what is made of it; the commands write that down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from clair_cli.cohort.model import Cohort, Rejection
from clair_cli.cohort.round import ClientLost, ClientsUnfit, load_round, rejection_of
from clair_cli.engine.device import Engine, choose_device, make_engine, warm_up
from clair_cli.engine.threads import one_thread_each
from clair_cli.errors import InputRefused, UsageError
from clair_cli.output.adapter_files import AdapterFiles
from clair_cli.report.model import Report
from clair_cli.settings import Settings
from clair_cli.workflow.judge import Judged, judge_round, refused_if_empty
from clair_cli.workflow.memory_estimate import check_memory, read_memory, work_memory
from clair_cli.workflow.merge_round import Merged, merge_round
from clair_cli.workflow.outputs import Destination, check_least_room
from clair_cli.workflow.read import read_cohort
from clair_cli.workflow.refine import Refined, refine_round
from clair_cli.workflow.report import exit_code, make_report, with_merged


def prepare(settings: Settings) -> None:
    """What the device needs before its first work.

    Raises:
        UsageError: it is not there.
    """
    warm_up(choose_device(settings.device))


def inspect(settings: Settings, cohort: Cohort | InputRefused) -> Report:
    judged, _ = run_round(settings, cohort, None)
    return make_report(settings, judged)


def merge(
    settings: Settings,
    cohort: Cohort | InputRefused,
    destination: Destination,
) -> tuple[Report, Merged | None]:
    """See `merge_round`."""

    def make(judged: Judged, settings: Settings, engine: Engine) -> tuple[Report, Merged]:
        """The report is made beside the merge, which it needs only in the end."""
        (report,) = engine.workers.start(lambda _: make_report(settings, judged), [0])
        merged = merge_round(judged, settings, engine, destination)
        return with_merged(report.result(), settings, merged), merged

    judged, made = run_round(settings, cohort, make)
    return (make_report(settings, judged), None) if made is None else made


def refine(
    settings: Settings, cohort: Cohort | InputRefused, destination: Destination
) -> tuple[Report, Refined | None]:
    """See `refine_round`."""

    def make(judged: Judged, settings: Settings, engine: Engine) -> Refined:
        return refine_round(judged, settings, engine, destination)

    judged, refined = run_round(settings, cohort, make)
    return make_report(settings, judged, refined=refined), refined


def do_again(settings: Settings, *, one_file: bool) -> tuple[Report, dict[str, AdapterFiles]]:
    """Merge or refine, and write nothing: the report, and the adapters by client's folder.

    Args:
        one_file: whether the merged adapter is to be a single file; its folder is "".
    """
    nowhere = Destination(one_file=one_file)
    if settings.command == "refine":
        report, refined = refine(settings, read_cohort(settings), nowhere)
        return report, {} if refined is None else refined.files
    report, merged = merge(settings, read_cohort(settings), nowhere)
    return report, {} if merged is None else {"": merged.adapter.files}


Made = TypeVar("Made")


def run_round(
    settings: Settings,
    cohort: Cohort | InputRefused,
    make: Callable[[Judged, Settings, Engine], Made] | None,
) -> tuple[Judged, Made | None]:
    """Read, judge and make; a client whose file changes on the way, or whose factors can't be
    relied on, is rejected and the round starts again without it, so that what is judged is what
    is merged.
    """
    engine = make_engine(settings)
    dropped: list[Rejection] = []
    with one_thread_each(), contextlib.closing(engine):
        while True:
            round_ = load_round(settings, cohort, dropped)
            if round_.refusal is None:
                needed = work_memory(round_, engine)
                engine.tell("memory", read_memory(round_) + needed, 0)
                check_memory(round_, engine, needed)
            if make is not None:
                check_least_room(settings, round_.usual_shapes)
            try:
                judged = judge_round(round_, engine, allow_undetermined=settings.allow_undetermined)
                if make is not None:
                    judged = refused_if_empty(judged)
                wanted = make is not None and exit_code(settings, judged) == 0
                made = make(judged, settings, engine) if make is not None and wanted else None
            except ClientsUnfit as unfit:
                dropped += unfit.rejections
                continue
            except ClientLost as lost:
                if lost.adapter is round_.previous:
                    raise UsageError(f"--previous: {lost.error.message}") from None
                dropped.append(rejection_of(lost.error, lost.adapter))
                cohort = read_cohort(settings)
                continue
            return judged, made
