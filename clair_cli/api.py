"""`merge`, `inspect` and `refine`: the Python twins of the commands.

They print nothing and never exit. A wrong call raises `UsageError`, an output that can't be
written `OutputError`; everything else is in the report, its exit code included.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from clair_cli.cohort.model import Cohort
from clair_cli.engine.own_process import importing
from clair_cli.errors import InputRefused
from clair_cli.report.model import Report
from clair_cli.settings import Progress, Settings, make_settings
from clair_cli.workflow.outputs import (
    check_outputs,
    destination_of,
    write_merged,
    write_refined,
    write_report_only,
)
from clair_cli.workflow.read import read_cohort

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Clients = str | Path | Mapping[str, tuple[Mapping[str, "Tensor | NDArray[Any]"], Any]]
PathLike = str | Path


@dataclass(frozen=True)
class MergeResult:
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


@dataclass(frozen=True)
class InspectResult:
    """What `inspect` found. `report_path`: where the report was written, or None."""

    report: Report
    report_path: str | None

    def __repr__(self) -> str:
        return f"InspectResult({_summary(self.report)})"


@dataclass(frozen=True)
class RefineResult:
    """What `refine` found and made.

    Attributes:
        adapters: client name to (tensors, config); empty when nothing was refined.
    """

    report: Report
    adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, object]]]
    report_path: str | None

    def __repr__(self) -> str:
        return f"RefineResult({_summary(self.report)}, {len(self.adapters)} adapters)"


def _summary(report: Report) -> str:
    """An outcome in a few words, for people at a prompt."""
    verdicts = Counter(client.verdict for client in report.clients)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"exit_code={report.exit_code}, {counts or 'no client'}"


def merge(
    clients: Clients,
    output: PathLike | BinaryIO | None = None,
    *,
    report: PathLike | None = None,
    rank: str | int = "auto",
    error_target: float = 0.1,
    keep_alpha: bool = False,
    dtype: str = "auto",
    tensor_names: str = "auto",
    weights: PathLike | Mapping[str, float] | None = None,
    previous: PathLike | tuple[Mapping[str, Tensor], Any] | None = None,
    exclude: Sequence[str] = (),
    min_clients: int = 3,
    allow_undetermined: bool = False,
    device: str = "auto",
    threads: int | None = None,
    fail_on: str = "never",
    force: bool = False,
    modules: str = "common",
    assume_alpha: float | str | None = None,
    limit: Mapping[str, int | str] | Sequence[str] = (),
    strict: bool = False,
    progress: Progress | None = None,
    output_format: str | None = None,
) -> MergeResult:
    """Judge the clients and merge the benign ones into one adapter.

    Args:
        clients: a folder, or name to (state dict, config) with a PEFT LoraConfig or its fields,
            or None where the tensors say the scale (kohya, diffusers). Tensors are torch's or
            numpy's.
        output: `NAME.safetensors`, a folder to be, an open binary file that gets the adapter
            as one safetensors file (the report then goes only where `report` says), or None to
            write nothing.
        report: where the JSON report goes besides its usual place.
        rank: "auto" (smallest serving rank within `error_target`), "same" (the clients' most
            common one), "full" (exact) or a number.
        error_target: relative error that "auto" accepts, 0 to 1.
        keep_alpha: write the clients' alpha instead of a scale of exactly 1.
        dtype: "auto" (the clients' own), "float32", "bfloat16" or "float16" (or fp32, bf16, fp16).
        tensor_names: "auto" (what most clients have), "peft", "diffusers" or "kohya".
        weights: name to positive number, or a JSON or CSV file of them; equal if None.
        previous: the adapter that all clients started this round from.
        exclude: clients left out unread.
        min_clients: fewer usable ones after rejections are refused (exit code 4).
        allow_undetermined: merge everybody not rejected when no verdict is possible.
        device: "auto", "cpu" or "cuda".
        threads: how many modules are worked on at once, the same bytes for any number; one per
            core if None.
        fail_on: "never", "suspicious" or "contaminated": exit code 3, and no adapter.
        force: replace existing outputs.
        modules: "common" (those that at least three clients have, or half of a few; a missing one
            is a zero update), "union" (all), "intersection" (those that all merged clients have)
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
    options = {k: v for k, v in locals().items() if k not in ("clients", "output")}
    settings = make_settings("merge", clients, output, options)
    check_outputs(settings)
    cohort, rounds = _begin(settings)
    with closing(destination_of(settings)) as destination:
        result, merged = rounds.merge(settings, cohort, destination)
        if merged is None:
            path = write_report_only(result, settings)
            return MergeResult(result, None, None, _text(path))
        path = write_merged(result, merged.files, settings)
    return MergeResult(result, merged.tensors, merged.config, _text(path))


def inspect(
    clients: Clients,
    output: PathLike | None = None,
    *,
    weights: PathLike | Mapping[str, float] | None = None,
    previous: PathLike | tuple[Mapping[str, Tensor], Any] | None = None,
    exclude: Sequence[str] = (),
    min_clients: int = 3,
    device: str = "auto",
    threads: int | None = None,
    fail_on: str = "contaminated",
    force: bool = False,
    modules: str = "common",
    assume_alpha: float | str | None = None,
    limit: Mapping[str, int | str] | Sequence[str] = (),
    strict: bool = False,
    progress: Progress | None = None,
) -> InspectResult:
    """Judge the clients and merge nothing; parameters as in `merge`.

    Args:
        output: where the JSON report goes, or None.
    """
    options = {k: v for k, v in locals().items() if k not in ("clients", "output")}
    settings = make_settings("inspect", clients, output, options)
    check_outputs(settings)
    cohort, rounds = _begin(settings)
    report = rounds.inspect(settings, cohort)
    return InspectResult(report, _text(write_report_only(report, settings)))


def refine(
    clients: Clients,
    output: PathLike | None = None,
    *,
    noise: float | None = None,
    report: PathLike | None = None,
    rank: str | int = "auto",
    error_target: float = 0.1,
    keep_alpha: bool = False,
    dtype: str = "auto",
    tensor_names: str = "auto",
    weights: PathLike | Mapping[str, float] | None = None,
    previous: PathLike | tuple[Mapping[str, Tensor], Any] | None = None,
    exclude: Sequence[str] = (),
    min_clients: int = 3,
    allow_undetermined: bool = False,
    device: str = "auto",
    threads: int | None = None,
    fail_on: str = "never",
    force: bool = False,
    modules: str = "common",
    assume_alpha: float | str | None = None,
    limit: Mapping[str, int | str] | Sequence[str] = (),
    strict: bool = False,
    progress: Progress | None = None,
    output_format: str | None = None,
) -> RefineResult:
    """Judge the clients and refine each benign one; parameters as in `merge`.

    Args:
        output: a folder to be, or None to write nothing.
        noise: standard deviation per entry of a delta weight, where it is known: then the gain
            is estimated, and a client that is not sure to gain keeps its local adapter.
        weights: as in `merge`; unequal ones are read as sample counts and identify the noise.
    """
    options = {k: v for k, v in locals().items() if k not in ("clients", "output")}
    settings = make_settings("refine", clients, output, options)
    check_outputs(settings)
    cohort, rounds = _begin(settings)
    with closing(destination_of(settings)) as destination:
        result, refined = rounds.refine(settings, cohort, destination)
        if refined is None:
            return RefineResult(result, {}, _text(write_report_only(result, settings)))
        path = write_refined(result, refined.files, settings)
    adapters = {r.name: (r.adapter.tensors, r.adapter.config) for r in refined.clients}
    return RefineResult(result, adapters, _text(path))


def _begin(settings: Settings) -> tuple[Cohort | InputRefused, ModuleType]:
    """The clients, and what needs torch: both at once where that can be had."""
    cohort = read_cohort(settings, partial(_rounds, settings))
    return cohort, _rounds(settings)


def _rounds(settings: Settings) -> ModuleType:
    """What needs torch; importing it is a stage of its own.

    Raises:
        ImportError: torch is missing or broken.
        UsageError: the device asked for is not there.
    """
    if "torch" not in sys.modules:
        settings.tell("importing torch", 0, 1)
    try:
        with importing():
            import numpy  # noqa: F401  # torch goes on without it

            from clair_cli.workflow import run as rounds
    except OSError as error:  # a library of torch's is not what it should be
        raise ImportError(str(error), name="torch") from error
    rounds.prepare(settings)
    return rounds


def _text(path: Path | None) -> str | None:
    return None if path is None else path.as_posix()
