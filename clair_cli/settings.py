"""What a run was asked to do: one frozen record, checked once, shown in the report.

Each option is declared here once, as a field of `Settings`: the command line, the Python functions
and the report follow from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from clair_cli import option as kinds
from clair_cli.allowed import Allowed
from clair_cli.errors import UsageError
from clair_cli.formats.filenames import is_one_file
from clair_cli.formats.limits import Limits
from clair_cli.option import JUDGING, OUTPUT, READING, RUNNING, Option, one_of, option, whole
from clair_cli.pipeline_options import FAIL_ON, REPORTS, ReportFile
from clair_cli.store.address import Place, RemotePath, place_of
from clair_cli.text import quoted

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""

# Values of options. Older reports have some other spellings.
Minority = Literal["shared", "merge", "exclude"]
FailOn = str | int  # a word, such as "contaminated"; 2 or "2" clients; "10%" of them
Dtype = Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
TensorNames = Literal["auto", "peft", "diffusers", "kohya", "mlx"]
Device = Literal["auto", "cpu", "cuda"]
Heads = Literal["average", "drop", "reject"]
Modules = Literal["common", "union", "intersection", "same"]
CONVERTIBLE = tuple(name for name in get_args(TensorNames) if name != "auto")
MODULES: tuple[Modules, ...] = get_args(Modules)

_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_DTYPES = [name for name in get_args(Dtype) if name not in _SHORT_DTYPES]

_LEVELS = (
    "warning, suspicious, minority, contaminated (a rejected client trips each of them); never;"
    " rejected, on those only; or N, or N% of all clients, contaminated and rejected ones together."
    " Repeatable."
)

# Which commands have an option
_WRITING = ("merge", "refine")
_JUDGING = ("merge", "inspect", "refine")
_ALL = (*_JUDGING, "verify")
_READING = (*_JUDGING, "convert")
_PATHS = (
    "clients",
    "output",
    "report",
    "weights",
    "previous",
    "initial",
    "trust_adapter",
    "verdicts",
    "earlier",
)

DECIDED_BY_REPORT = ("trust", "trust_adapter", "allow", "exclude", "minority", "fresh",
                     "earlier")  # fmt: skip
"""Options that `--verdicts` takes the place of: they stand in its report."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback of a run that nobody watches."""


@dataclass(frozen=True)
class Settings:
    """Options of one run; the same names as the command line's, in the order of its help.

    Attributes:
        clients: a folder, or adapters in memory: name to (state dict, config).
        output: where the result goes, or None for nowhere.
        stream: an open binary file that the merged adapter is written to instead, or None.
        progress: called as the run goes on.
        reviewed: what the report of `verdicts` says, once it is read, or None.
        seen: called with the hash of the adapter that the clients started from, gives the rounds
            before this one, of the reports of `earlier` or of a server; or None.
        report: where the report goes besides its usual place, one of each form at most.
        limit: the limits on the input, defaults filled in.
        threads: how many modules are worked on at once; None for as many as there are cores.
    """

    command: str
    clients: Any
    output: Place | None = None
    stream: Any = None
    progress: Progress = no_progress
    reviewed: Any = None
    seen: Any = None

    # fmt: off
    report: tuple[ReportFile, ...] = option(
        REPORTS,
        "Where the JSON report goes, if not beside the output; - for standard output. Or the report"
        " in another form: html=PATH, markdown=PATH, sarif=PATH, junit=PATH, codequality=PATH."
        " Repeatable.",
        OUTPUT, _JUDGING, default=(), recorded=False, in_environment=False,
        in_inspect=(
            (),
            "The report in another form: html=PATH, markdown=PATH, sarif=PATH, junit=PATH,"
            " codequality=PATH; or json=PATH, as -o. - for standard output. Repeatable.",
        ),
    )
    rank: str | int = option(
        kinds.RANK,
        "Rank to write: the smallest serving rank (8, 16, 32 and so on) that meets --error-target,"
        " the clients' most common one, one that loses nothing, or N.",
        OUTPUT, _WRITING, default="auto",
    )
    error_target: float = option(
        kinds.SHARE, "Largest relative error that --rank auto accepts.",
        OUTPUT, _WRITING, default=0.1,
    )
    keep_alpha: bool = option(
        kinds.FLAG, "Write the clients' alpha instead of alpha = rank.",
        OUTPUT, _WRITING, default=False,
    )
    dtype: str = option(
        one_of(_DTYPES, _SHORT_DTYPES), "Type of the numbers written.",
        OUTPUT, _WRITING, default="auto",
    )
    tensor_names: str = option(
        one_of(get_args(TensorNames)),
        "Tensor names to write: what most clients have, or one of these.",
        OUTPUT, _WRITING, default="auto", older="output_format",
    )
    base_model: str | None = option(
        kinds.NAME,
        "Base model that the written config names; no comparison changes. Default: what most"
        " clients name.",
        OUTPUT, _WRITING,
    )
    force: bool = option(
        kinds.FLAG, "Replace an output that already exists.",
        OUTPUT, _READING, default=False, short="-f", recorded=False, in_environment=False,
    )
    noise: float | None = option(
        kinds.POSITIVE,
        "Standard deviation of the noise per entry of a delta weight, if known. Default: estimated"
        " where the data allow it.",
        JUDGING, ("refine",),
    )
    fail_on: tuple[str, ...] = option(
        FAIL_ON,
        f"Exit 3, and write no adapter, from this finding on: {_LEVELS} Default: never.",
        JUDGING, _JUDGING, default="never",
        in_inspect=(
            "contaminated",
            f"Exit 3 from this finding on: {_LEVELS} Default: contaminated.",
        ),
    )
    strict: bool = option(
        kinds.FLAG, "Exit 4 if any client is rejected.",
        JUDGING, _JUDGING, default=False,
    )
    min_clients: int = option(
        whole(1), "Fewest comparable clients to judge; default: 3, and 2 where one is trusted.",
        JUDGING, _JUDGING,
    )
    trust: tuple[str, ...] = option(
        kinds.TRUSTED,
        "A client that is known to be good: it is merged, and its group is the cohort, whatever its"
        " size. With a hash, only that file is. Repeatable.",
        JUDGING, _JUDGING, default=(), in_environment=False,
    )
    allow: tuple[Allowed, ...] = option(
        kinds.ALLOWED,
        "Clients whose very file a person has looked at and wants merged, as suspicious at worst.",
        JUDGING, _JUDGING, default=(), in_environment=False, on_command_line=False,
    )
    trust_adapter: Any = option(
        kinds.ADAPTER,
        "An adapter of your own, trained as the clients' are: compared with them, its group is the"
        " cohort, and it is not merged.",
        JUDGING, _ALL, in_environment=False,
    )
    verdicts: Place | None = option(
        kinds.PATH,
        "A report of these very clients: merge by its verdicts, edited or not, and judge nobody"
        " again.",
        JUDGING, ("merge", "verify"), in_environment=False,
    )
    earlier: Place | None = option(
        kinds.PATH,
        "A folder with the reports of the rounds before this one: what they saw of a client adds to"
        " how sure its verdict is, and changes none. Needs --previous.",
        JUDGING, _ALL, in_environment=False,
    )
    allow_undetermined: bool = option(
        kinds.FLAG,
        "Without a verdict, go on with everybody not rejected (exit 0 instead of 5).",
        JUDGING, _WRITING, default=False, in_environment=False,
    )
    minority: str = option(
        one_of(get_args(Minority)),
        "Clients that share something which all others lack: merge what they share with the others"
        " too, merge them whole, or leave them out.",
        JUDGING, _JUDGING, default="shared",
    )
    weights: Place | Mapping[str, float] | None = option(
        kinds.WEIGHTS,
        "JSON object or two-column CSV of client name to positive number, such as sample counts."
        " Default: all equal.",
        JUDGING, _ALL,
    )
    max_weight: float | None = option(
        kinds.FRACTION,
        "No client has more than this share of the merge; what is above it is spread over the"
        " others.",
        JUDGING, _JUDGING,
    )
    previous: Any = option(
        kinds.ADAPTER, "The adapter that all clients started this round from.",
        READING, _ALL,
    )
    initial: Any = option(
        kinds.ADAPTER,
        "The adapter that all clients started from, of an init that changed the base (PiSSA, OLoRA"
        " and the like): what they added to it is merged, for the original base.",
        READING, _ALL,
    )
    fresh: bool = option(
        kinds.FLAG,
        "The clients started from a fresh adapter: if they are nearly the same, they agree.",
        READING, _JUDGING, default=False,
    )
    exclude: tuple[str, ...] = option(
        kinds.NAMES, "Leave a client out; repeatable.",
        READING, _JUDGING, default=(),
    )
    same_base: bool = option(
        kinds.FLAG, "All clients' names of the base model mean one model.",
        READING, _JUDGING, default=False,
    )
    checkpoint: str | int | None = option(
        kinds.CHECKPOINT,
        "Which checkpoint to read where a client's folder has some: the last one, the best one by"
        " trainer_state.json, or number N. Default: the adapter in the folder itself.",
        READING, _JUDGING,
    )
    modules: str = option(
        one_of(MODULES, {"strict": "same"}),
        "Which modules: those that three clients have, or half of a few; all; those that all merged"
        " clients have; or all, and reject who lacks one of the majority's. Absent counts as no"
        " update.",
        READING, _JUDGING, default="common",
    )
    heads: str = option(
        one_of(get_args(Heads)),
        "What was trained beside the LoRA (a classification head, biases, token rows): average it"
        " too, leave it out, or reject who has any.",
        READING, _JUDGING, default="average",
    )
    assume_alpha: float | str | None = option(
        kinds.ALPHA, "lora_alpha for clients without a config; without it they are rejected.",
        READING, _READING,
    )
    limit: Limits = option(
        kinds.LIMITS,
        "Raise or lower a limit on the input; repeatable. Defaults: clients=1000, file=4G,"
        " total=64G, header=8M, tensors=40000, rank=1024, work=8 (x the median client's).",
        READING, _READING, default=(),
    )
    device: str = option(
        one_of(get_args(Device)), "Where to compute. Only last bits depend on it.",
        RUNNING, _ALL, default="auto", recorded=False,
    )
    engine: str = option(
        kinds.ENGINE,
        "Where the work runs: threads of this machine, or the tasks of a Ray cluster, at ADDRESS or"
        " started here. The results are the same.",
        RUNNING, _ALL, default="local", recorded=False, in_environment=False,
    )
    threads: int | None = option(
        whole(1), "Modules worked on at once; default: one per core. The results are the same.",
        RUNNING, _ALL, recorded=False,
    )

    # fmt: on

    @property
    def trusted(self) -> dict[str, str | None]:
        """Names of the trusted clients, as given, to the SHA-256 that each is bound to, or None."""
        return kinds.hashes_of(self.trust)

    @property
    def json_report(self) -> Place | None:
        """Where the JSON report goes, or None for its usual place."""
        return next((one.path for one in self.report if one.format == "json"), None)

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
        if self.stream is not None:
            return "-"
        return None if self.output is None else self.output.as_posix()

    def shown(self) -> dict[str, object]:
        """The options as the report holds them: plain values, paths as given, no clock."""
        values = vars(self)
        return {
            "clients": "(in memory)" if self.in_memory else self.clients.as_posix(),
            "output": self.shown_output,
            **{
                name: declared.kind.record(values[name])
                for name, declared in options_of(self.command).items()
                if declared.recorded
            },
        }


OPTIONS: Mapping[str, Option] = {
    field.name: field.metadata["option"] for field in fields(Settings) if field.metadata
}
"""All options by name, in the order of the help."""


def options_of(command: str) -> dict[str, Option]:
    """The options of one command ("verify" too), in the order of its help."""
    return {name: declared for name, declared in OPTIONS.items() if command in declared.commands}


def make_settings(command: str, clients: Any, output: Any, options: Mapping[str, Any]) -> Settings:
    """Check the options of a call and freeze them.

    Args:
        command: "merge", "inspect" or "refine".
        options: by name, older names included, and "progress". A value is a Python value or the
            text that stands for it on the command line; what is absent gets its default.

    Raises:
        UsageError: naming the option, what was given and what is expected.
        TypeError: the command has no option of that name.
    """
    known = options_of(command)
    given = _by_current_names(options, known)
    progress = given.pop("progress", None) or no_progress
    if unknown := sorted(given.keys() - known.keys()):
        raise TypeError(f"{command}() got an unexpected keyword argument {unknown[0]!r}")
    stream = output if hasattr(output, "write") else None
    if stream is not None and command != "merge":
        raise UsageError(f"output is a stream, but {command} does not write one adapter")
    for name, value in [("clients", clients), ("output", output), *given.items()]:
        if value == "" and name in _PATHS:
            raise UsageError(f"{name} is an empty path")
    if not isinstance(clients, (str, os.PathLike, RemotePath, Mapping)):
        raise UsageError(f"clients is a {type(clients).__name__}, expected a path or a mapping")
    if isinstance(clients, Mapping):
        _check_in_memory(clients)
    values = {}
    for name, declared in known.items():
        default, _ = declared.default_and_help(command)
        value = given.get(name, default)
        if value is None and declared.kind.repeatable:  # the command line's word for: not given
            value = default
        values[name] = declared.value(name, value)
    if values["min_clients"] is None:
        values["min_clients"] = 2 if values["trust"] or values["trust_adapter"] is not None else 3
    settings = Settings(
        command,
        clients if isinstance(clients, Mapping) else place_of(clients),
        None if output is None or stream is not None else place_of(output),
        stream,
        progress,
        **values,
    )
    check_engine(settings)
    if settings.verdicts is not None:
        _check_decided(settings)
    if settings.fresh and settings.previous is not None:
        raise UsageError(
            "fresh says that the clients started from a fresh adapter, and previous names another",
            hint="give one of the two",
        )
    if settings.initial is not None and settings.previous is not None:
        raise UsageError(
            "initial and previous each name the adapter that all clients started from; the merge "
            "is on top of previous, and not on top of initial",
            hint="give initial if its init changed the base weights, else previous",
        )
    if settings.earlier is not None and settings.previous is None:
        raise UsageError(
            "earlier names reports of the rounds before, and previous is not given",
            hint="give the adapter that all clients started this round from with --previous",
        )
    if isinstance(settings.rank, int) and settings.rank > settings.limit.max_rank:
        raise UsageError(
            f"rank is {settings.rank}, above the limit of {settings.limit.max_rank}",
            hint="raise it with --limit rank=VALUE",
        )
    return settings


def _check_decided(settings: Settings) -> None:
    """Refuse options that the report of `verdicts` decides."""
    for name in DECIDED_BY_REPORT:
        if getattr(settings, name) != OPTIONS[name].default:
            raise beside_verdicts(name)


def beside_verdicts(name: str) -> UsageError:
    """The error about an option that the report of `verdicts` decides."""
    return UsageError(
        f"{name} beside verdicts: the report has decided that",
        hint=f"leave out {name.replace('_', '-')}, or judge the clients again without verdicts",
    )


def _by_current_names(options: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """The options with older names replaced.

    Raises:
        UsageError: an option is given by both names, with different values.
    """
    given = dict(options)
    for name, declared in known.items():
        older = given.pop(declared.older, None)
        if older is None:
            continue
        if given.get(name, declared.default) not in (declared.default, older):
            raise UsageError(f"{name} is {given[name]!r}, and {declared.older}, its older name, is "
                             f"{older!r}")  # fmt: skip
        given[name] = older
    return given


def check_engine(settings: Settings) -> None:
    """Refuse clients that the machines of a cluster can't read.

    Raises:
        UsageError: they are in memory.
    """
    if settings.engine != "local" and settings.in_memory:
        raise UsageError(
            "engine ray reads the clients from files, and these are in memory",
            hint="save them, or leave out engine",
        )


def _check_in_memory(clients: Mapping[Any, Any]) -> None:
    """Refuse clients that no single client is to blame for: no pairs, or no config at all."""
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
