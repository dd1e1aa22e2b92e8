"""`merge`, `inspect` and `refine`: the Python twins of the commands.

They print nothing and never exit. A wrong call raises `UsageError`, an output that can't be
written `OutputError`; everything else is in the report, its exit code included.
"""

from __future__ import annotations

import inspect as inspect_module
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypedDict, TypeVar

from clair_cli.cohort.model import Cohort
from clair_cli.engine.cluster import cluster_for
from clair_cli.engine.own_process import importing
from clair_cli.errors import InputRefused, RoundStopped
from clair_cli.rendered.findings import headline
from clair_cli.report.model import Report
from clair_cli.settings import (
    Device,
    Dtype,
    FailOn,
    Heads,
    Minority,
    Modules,
    Progress,
    Settings,
    TensorNames,
    make_settings,
    options_of,
)
from clair_cli.store.address import Place
from clair_cli.workflow.destination import destination_of
from clair_cli.workflow.outputs import (
    check_outputs,
    write_merged,
    write_refined,
    write_report_only,
)
from clair_cli.workflow.read import read_cohort, with_earlier_reports

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Self, Unpack

Clients = str | Place | Mapping[str, tuple[Mapping[str, "Tensor | NDArray[Any]"], Any]]
PathLike = str | Place


class _Result:
    """What all results have."""

    report: Report

    def raise_for_outcome(self: Self) -> Self:
        """The result itself where the round went well (exit code 0).

        Raises:
            RoundStopped: it did not, with the verdict in one sentence and the report.
        """
        if self.report.exit_code == 0:
            return self
        hint = self.report.cohort.remedy or "look at the report, or give another fail_on"
        raise RoundStopped(
            headline(self.report), report=self.report, exit_code=self.report.exit_code, hint=hint
        )


@dataclass(frozen=True)
class MergeResult(_Result):
    """What `merge` found and made.

    Attributes:
        report: everything, `exit_code` included.
        tensors, config: the merged adapter, or None when there is none.
        report_path: where the report was written, as given, or None.
    """

    report: Report
    tensors: Mapping[str, Tensor] | None
    config: Mapping[str, object] | None
    report_path: str | None

    def __repr__(self) -> str:
        count = "no adapter" if self.tensors is None else f"{len(self.tensors)} tensors"
        return f"MergeResult({_summary(self.report)}, {count})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@dataclass(frozen=True)
class InspectResult(_Result):
    """What `inspect` found. `report_path`: where the report was written, or None."""

    report: Report
    report_path: str | None

    def __repr__(self) -> str:
        return f"InspectResult({_summary(self.report)})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@dataclass(frozen=True)
class RefineResult(_Result):
    """What `refine` found and made.

    Attributes:
        adapters: client name to (tensors, config); empty when nothing was refined.
    """

    report: Report
    adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, object]]]
    report_path: str | None

    def __repr__(self) -> str:
        return f"RefineResult({_summary(self.report)}, {len(self.adapters)} adapters)"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def _summary(report: Report) -> str:
    """An outcome in a few words, for people at a prompt."""
    verdicts = Counter(client.verdict for client in report.clients)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"exit_code={report.exit_code}, {counts or 'no client'}"


class InspectOptions(TypedDict, total=False):
    """The options of `inspect`, as in `merge`."""

    weights: PathLike | Mapping[str, float] | None
    max_weight: float | None
    previous: PathLike | tuple[Mapping[str, Tensor], Any] | None
    initial: PathLike | tuple[Mapping[str, Tensor], Any] | None
    fresh: bool
    exclude: Sequence[str]
    same_base: bool
    checkpoint: int | Literal["last", "best"] | None
    min_clients: int | None
    trust: Sequence[str]
    allow: Sequence[Mapping[str, object]]
    trust_adapter: PathLike | tuple[Mapping[str, Tensor], Any] | None
    earlier: PathLike | None
    device: Device
    engine: str
    threads: int | None
    fail_on: FailOn | Sequence[FailOn]
    minority: Minority
    force: bool
    heads: Heads
    modules: Modules
    assume_alpha: float | Literal["rank"] | None
    limit: Mapping[str, int | str] | Sequence[str]
    strict: bool
    progress: Progress | None
    report: PathLike | Sequence[PathLike] | Mapping[str, PathLike] | None


class WritingOptions(InspectOptions, total=False):
    """The options of `merge` and `refine`."""

    rank: int | Literal["auto", "same", "full"]
    error_target: float
    keep_alpha: bool
    dtype: Dtype
    tensor_names: TensorNames
    base_model: str | None
    allow_undetermined: bool
    output_format: TensorNames | None


class MergeOptions(WritingOptions, total=False):
    """The options of `merge`, which has what each means."""

    verdicts: PathLike | None


class RefineOptions(WritingOptions, total=False):
    """The options of `refine`, as in `merge`, and the noise."""

    noise: float | None


Function = TypeVar("Function", bound=Callable[..., object])


def _with_options(function: Function) -> Function:
    """Show the options and their defaults in the function's signature, for `help` and prompts."""
    signature = inspect_module.signature(function)
    command = function.__name__
    given = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    defaults = {n: o.default_and_help(command)[0] for n, o in options_of(command).items()}
    named = [
        inspect_module.Parameter(name, inspect_module.Parameter.KEYWORD_ONLY, default=default)
        for name, default in {**defaults, "progress": None}.items()
    ]
    vars(function)["__signature__"] = signature.replace(parameters=[*given, *named])
    return function


@_with_options
def merge(
    clients: Clients,
    output: PathLike | BinaryIO | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Judge the clients and merge the benign ones into one adapter.

    Args:
        clients: a folder or its address (s3://BUCKET/KEY, also gs:// and az://: docs/storage.md),
            or name to (state dict, config) with a PEFT LoraConfig or its fields,
            or None where the tensors say the scale (kohya, diffusers). Tensors are torch's or
            numpy's.
        output: `NAME.safetensors`, a folder to be, the address of either, an open binary file that
            gets the adapter as one safetensors file (the report then goes only where `report`
            says), or None to write nothing.
        report: where the report goes besides its usual place: a path for JSON, or a mapping such as
            {"json": path, "markdown": path} with "html", "sarif", "junit" or "codequality", or a
            list of texts such as "markdown=PATH".
        rank: "auto" (smallest serving rank within `error_target`), "same" (the clients' most
            common one), "full" (exact) or a number.
        error_target: relative error that "auto" accepts, 0 to 1.
        keep_alpha: write the clients' alpha instead of a scale of exactly 1.
        dtype: "auto" (the clients' own), "float32", "bfloat16" or "float16" (or fp32, bf16, fp16).
        tensor_names: "auto" (what most clients have), "peft", "diffusers", "kohya" or "mlx".
        base_model: the base model's name in the written config, whatever the clients call it; what
            most of them call it if None.
        weights: name to positive number, or a JSON or CSV file of them; equal if None.
        max_weight: largest share of one client in the merge, at least 1 / number merged; the excess
            is spread over the others in proportion to their weights. Any share if None.
        previous: the adapter that all clients started this round from.
        initial: the adapter that all clients started from, as `previous`, of an init that changed
            the base (PiSSA, OLoRA and the like). The mean of what they added to it is the merge,
            which loads on the original base.
        fresh: the clients started from a fresh adapter: if they are nearly the same, they agree.
        exclude: clients left out unread.
        same_base: all clients' names of the base model mean one model.
        checkpoint: where a client's folder has checkpoints, the one to read: "last", "best" (by
            trainer_state.json) or its number; the adapter in the folder itself if None.
        min_clients: fewer usable ones after rejections are refused (exit code 4). If None: 3, or 2
            where something is trusted.
        trust: clients known to be good, as "NAME" or "NAME=sha256:HASH": they are merged, and their
            group is the cohort.
        allow: clients that a person has looked at: mappings with `client`, `sha256` of its weights
            file, `reason`, `by` and `until` (YYYY-MM-DD, or a date). One that would be left out is
            merged as a suspicious one, while its file is that one and the day has not passed.
        trust_adapter: an adapter of your own as `previous`, compared with the clients as a trusted
            one, and not merged.
        earlier: a folder with the reports of the rounds before this one, each of which merged what
            the next one has as `previous` (by its file's hash, so as a path). What they saw of each
            client adds to the confidence of its verdict, and changes no verdict.
        verdicts: a report of these very clients, by `inspect` or `merge`: they are merged by its
            verdicts, which a person may have edited. It decides in place of `trust`,
            `trust_adapter`, `allow`, `exclude`, `minority`, `fresh` and `earlier`. A client that is
            not the one that was reviewed refuses the round (exit code 4).
        allow_undetermined: merge everybody not rejected when no verdict is possible.
        device: "auto", "cpu" or "cuda".
        engine: "local", or "ray" and "ray=ADDRESS" for the tasks of a Ray cluster: the one at the
            address, in the variable RAY_ADDRESS, or started on this machine. It needs clients in
            files that all machines see, and the extra `ray`. The results are the same.
        threads: how many modules are worked on at once, the same bytes for any number; one per
            core if None.
        fail_on: exit code 3, and no adapter, from this finding on: "never", "warning" (also on any
            remark that is more than a note), "suspicious", "minority" or "contaminated"; a rejected
            client trips each of the four. "rejected": on those only. 2 or "2", or "10%": when so
            many clients, or such a share of all that were found, are contaminated or rejected.
            Several may be given in a list: any of them trips.
        minority: of clients that share something which all others lack: "shared" merges what they
            share with the others too, "merge" all of them, "exclude" nothing.
        force: replace existing outputs.
        modules: "common" (those that at least three clients have, or half of a few; a missing one
            counts as zero), "union" (all), "intersection" (those that all merged clients have)
            or "same" (a client without a module of the majority is rejected).
        assume_alpha: alpha of files without any config, or "rank".
        limit: other limits on the input, as in {"clients": 2000, "file": "8G"}.
        strict: one rejected client refuses the round.
        progress: called as `progress(stage, done, total)`; before the work as
            `progress("memory", bytes, 0)` with an estimate of what it will take.
        output_format: the older name of `tensor_names`.

    Raises:
        UsageError, OutputError: nothing was written.
    """
    return run_merge(make_settings("merge", clients, output, options))


@_with_options
def inspect(
    clients: Clients, output: PathLike | None = None, **options: Unpack[InspectOptions]
) -> InspectResult:
    """Judge the clients and merge nothing; options as in `merge`, but for `fail_on`.

    Args:
        output: where the JSON report goes, or None.
        fail_on: "contaminated" unless given.
    """
    return run_inspect(make_settings("inspect", clients, output, options))


@_with_options
def refine(
    clients: Clients, output: PathLike | None = None, **options: Unpack[RefineOptions]
) -> RefineResult:
    """Judge the clients and refine each benign one; options as in `merge`.

    Args:
        output: a folder to be, or None to write nothing.
        noise: standard deviation per entry of a delta weight, where it is known: then the gain
            is estimated, and a client that is not sure to gain keeps its local adapter.
        weights: as in `merge`; unequal ones are read as sample counts and identify the noise.
    """
    return run_refine(make_settings("refine", clients, output, options))


def run_merge(settings: Settings) -> MergeResult:
    """See `merge`."""
    check_outputs(settings)
    with cluster_for(settings):
        return _merged(settings)


def _merged(settings: Settings) -> MergeResult:
    settings = with_report(with_earlier_reports(settings))
    cohort = _read(settings)
    from clair_cli.workflow.run import merge_cohort  # it imports torch

    with closing(destination_of(settings)) as destination:
        result, merged = merge_cohort(settings, cohort, destination)
        if merged is None:
            path = write_report_only(result, settings)
            return MergeResult(result, None, None, _text(path))
        path = write_merged(result, merged.files, settings, merged.base_model)
    return MergeResult(result, merged.tensors, merged.config, _text(path))


def with_report(settings: Settings) -> Settings:
    """The settings with what the report of `--verdicts` decides; see `by_review`."""
    if settings.verdicts is None:
        return settings
    _prepare(settings)
    from clair_cli.workflow.by_report import by_review  # it imports torch

    return by_review(settings)


def run_inspect(settings: Settings) -> InspectResult:
    """See `inspect`."""
    check_outputs(settings)
    with cluster_for(settings):
        return _inspected(settings)


def _inspected(settings: Settings) -> InspectResult:
    settings = with_earlier_reports(settings)
    cohort = _read(settings)
    from clair_cli.workflow.run import inspect_cohort  # it imports torch

    report = inspect_cohort(settings, cohort)
    return InspectResult(report, _text(write_report_only(report, settings)))


def run_refine(settings: Settings) -> RefineResult:
    """See `refine`."""
    check_outputs(settings)
    with cluster_for(settings):
        return _refined(settings)


def _refined(settings: Settings) -> RefineResult:
    settings = with_earlier_reports(settings)
    cohort = _read(settings)
    from clair_cli.workflow.run import refine_cohort  # it imports torch

    with closing(destination_of(settings)) as destination:
        result, refined = refine_cohort(settings, cohort, destination)
        if refined is None:
            return RefineResult(result, {}, _text(write_report_only(result, settings)))
        path = write_refined(result, refined.files, settings, refined.base_models)
    adapters = {r.name: (r.adapter.tensors, r.adapter.config) for r in refined.clients}
    return RefineResult(result, adapters, _text(path))


def _read(settings: Settings) -> Cohort | InputRefused:
    """The clients, read while torch is imported."""
    cohort = read_cohort(settings, partial(_prepare, settings))
    _prepare(settings)  # clients from memory are not read
    return cohort


def _prepare(settings: Settings) -> None:
    """Import what needs torch, as a stage of its own, and prepare the device.

    Raises:
        ImportError: torch is missing or broken.
        UsageError: the device asked for is not there.
    """
    if "torch" not in sys.modules:
        settings.progress("importing torch", 0, 1)
    try:
        with importing():
            import numpy  # noqa: F401  # torch goes on without it

            from clair_cli.workflow.run import prepare
    except OSError as error:  # a library of torch's is not what it should be
        raise ImportError(str(error), name="torch") from error
    prepare(settings)


def _text(path: Place | None) -> str | None:
    return None if path is None else path.as_posix()
