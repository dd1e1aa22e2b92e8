"""What a run was asked to do: one frozen record, checked once, shown in the report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from clair_cli.adapters.names.parts import FORMATS
from clair_cli.errors import UsageError
from clair_cli.formats.filenames import is_one_file
from clair_cli.formats.limits import Limits, changed_limits, parse_limits
from clair_cli.text import quoted

Progress = Callable[[str, int, int], None]
FAIL_ON = ("never", "suspicious", "contaminated")
DTYPES = ("auto", "float32", "bfloat16", "float16")
TENSOR_NAMES = ("auto", *FORMATS)
DEVICES = ("auto", "cpu", "cuda")


Modules = Literal["common", "union", "intersection", "same"]
MODULES: tuple[Modules, ...] = get_args(Modules)
SPELLINGS = {
    "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "modules": {"strict": "same"},
}
"""Other spellings of values, by option: short ones, and what older reports have."""


@dataclass(frozen=True)
class Settings:
    """Options of one run; the same names as the command line's.

    Attributes:
        clients: a folder, or adapters in memory: name to (state dict, config).
        output: where the result goes, or None for nowhere.
        stream: an open binary file that the merged adapter is written to instead, or None.
        report: where the JSON report goes, or None for its usual place.
        limit: the limits on the input, defaults filled in.
        threads: how many modules are worked on at once; None for as many as there are cores.
    """

    command: str
    clients: Any
    output: Path | None = None
    stream: Any = None
    report: Path | None = None
    rank: str | int = "auto"
    error_target: float = 0.1
    keep_alpha: bool = False
    dtype: str = "auto"
    tensor_names: str = "auto"
    weights: Path | Mapping[str, float] | None = None
    previous: Any = None
    exclude: tuple[str, ...] = ()
    min_clients: int = 3
    allow_undetermined: bool = False
    device: str = "auto"
    fail_on: str = "never"
    force: bool = False
    modules: str = "common"
    assume_alpha: float | str | None = None
    limit: Limits = field(default_factory=Limits)
    strict: bool = False
    noise: float | None = None
    threads: int | None = None
    progress: Progress | None = None

    @property
    def in_memory(self) -> bool:
        return isinstance(self.clients, Mapping)

    @property
    def one_file(self) -> bool:
        """Whether the merged adapter is one file rather than a PEFT folder."""
        if self.stream is not None:
            return True
        return self.command == "merge" and self.output is not None and is_one_file(self.output)

    @property
    def shown_output(self) -> str | None:
        """The output as given, "-" for a stream."""
        return _path(self.output) if self.stream is None else "-"

    def tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def shown(self) -> dict[str, object]:
        """The options as the report holds them: plain values, paths as given, no clock."""
        given: dict[str, object] = {
            "clients": "(in memory)" if self.in_memory else _path(self.clients),
            "output": self.shown_output,
            "weights": "(in memory)" if isinstance(self.weights, Mapping) else _path(self.weights),
            "previous": _path(self.previous)
            if isinstance(self.previous, (str, os.PathLike, type(None)))
            else "(in memory)",
        }
        names = (
            "rank error_target keep_alpha dtype tensor_names min_clients allow_undetermined "
            "fail_on modules assume_alpha strict noise device"
        )
        given.update({name: getattr(self, name) for name in names.split()})
        given["exclude"] = sorted(self.exclude)
        given["limit"] = changed_limits(self.limit)
        if self.command == "inspect":
            writing = "rank error_target keep_alpha dtype tensor_names allow_undetermined"
            for name in writing.split():
                del given[name]
        if self.command != "refine":
            del given["noise"]
        return given


def _path(value: Any) -> str | None:
    return None if value is None else Path(value).as_posix()


def _limits(given: Any) -> Limits:
    return given if isinstance(given, Limits) else parse_limits(given)


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        listed = ", ".join(str(a) for a in allowed)
        raise UsageError(f"{name} is {value!r}, expected one of {listed}")


def _check_types(clients: Any, given: Mapping[str, Any]) -> None:
    """The types a wrong call gets wrong, before anything trips over them."""
    if not isinstance(clients, (str, os.PathLike, Mapping)):
        raise UsageError(f"clients is a {type(clients).__name__}, expected a path or a mapping")
    if isinstance(clients, Mapping):
        _check_in_memory(clients)
    weights = given.get("weights")
    if weights is not None and not isinstance(weights, (Path, Mapping)):
        raise UsageError(f"weights is a {type(weights).__name__}, expected a path or a mapping")
    if wrong := [name for name in given["exclude"] if not isinstance(name, str)]:
        raise UsageError(f"exclude has {wrong[0]!r}, expected names of clients")
    alpha = given.get("assume_alpha")
    if not (alpha is None or isinstance(alpha, (str, Real))):
        raise UsageError(f"assume_alpha is {alpha!r}, expected a number or 'rank'")
    for name in ("min_clients", "error_target", "noise"):
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UsageError(f"{name} is {value!r}, expected a number")


def _check_in_memory(clients: Mapping[Any, Any]) -> None:
    """What is the caller's mistake and no client's: no pairs, or nobody's config."""
    for name, client in clients.items():
        if not isinstance(client, (tuple, list)) or len(client) != 2:
            kind = type(client).__name__
            raise UsageError(
                f"client {quoted(str(name))} is a {kind}, expected a pair of state dict and config",
                hint="give {name: (state_dict, config)}",
            )
    configs = [config for _, config in clients.values()]
    if configs and all(isinstance(config, Mapping) and not config for config in configs):
        raise UsageError(
            "every client's config is empty, so no client's scale is known",
            hint="give the fields of adapter_config.json, or None where the tensors say the scale",
        )


def _current_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with older names and other spellings replaced."""
    given = dict(options)
    older = given.pop("output_format", None)
    if older is not None:
        if given.get("tensor_names", "auto") not in ("auto", older):
            raise UsageError(f"tensor_names is {given['tensor_names']!r}, and output_format, its "
                             f"older name, is {older!r}")  # fmt: skip
        given["tensor_names"] = older
    for name, spellings in SPELLINGS.items():
        if isinstance(given.get(name), str):
            given[name] = spellings.get(given[name], given[name])
    return given


def make_settings(command: str, clients: Any, output: Any, options: Mapping[str, Any]) -> Settings:
    """Check the options of a call and freeze them.

    Raises:
        UsageError: naming the option, what was given and what is expected.
    """
    given = _current_words(options)
    stream = output if hasattr(output, "write") else None
    if stream is not None and command != "merge":
        raise UsageError(f"output is a stream, but {command} does not write one adapter")
    for name, value in [("clients", clients), ("output", output), *given.items()]:
        if value == "" and name in ("clients", "output", "report", "weights", "previous"):
            raise UsageError(f"{name} is an empty path")
    for name in ("report", "weights", "previous"):
        if isinstance(given.get(name), (str, os.PathLike)):
            given[name] = Path(given[name])
    exclude = given.get("exclude") or ()
    given["exclude"] = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    given["limit"] = _limits(given.get("limit") or ())
    _check_types(clients, given)
    settings = Settings(
        command,
        clients if isinstance(clients, Mapping) else Path(clients),
        None if output is None or stream is not None else Path(output),
        stream,
        **given,
    )
    _one_of("fail_on", settings.fail_on, FAIL_ON)
    _one_of("dtype", settings.dtype, DTYPES)
    _one_of("tensor_names", settings.tensor_names, TENSOR_NAMES)
    _one_of("device", settings.device, DEVICES)
    _one_of("modules", settings.modules, MODULES)
    threads = settings.threads
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool)):
        raise UsageError(f"threads is {threads!r}, expected a whole number")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}, expected at least 1")
    rank = settings.rank
    if rank not in ("auto", "same", "full") and not (
        isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    ):
        raise UsageError(f"rank is {rank!r}, expected auto, same, full or a number of at least 1")
    if isinstance(rank, int) and rank > settings.limit.max_rank:
        raise UsageError(
            f"rank is {rank}, above the limit of {settings.limit.max_rank}",
            hint="raise it with --limit rank=VALUE",
        )
    if not 0 < settings.error_target < 1:
        raise UsageError(f"error_target is {settings.error_target}, expected between 0 and 1")
    if settings.min_clients < 1:
        raise UsageError(f"min_clients is {settings.min_clients}, expected at least 1")
    noise = settings.noise
    if noise is not None and not (noise > 0 and math.isfinite(noise)):
        raise UsageError(f"noise is {noise}, expected a positive number")
    return settings
