"""`verify`: is an output what its report says, and does the same merge give it again?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.errors import InputRefused, UsageError
from clair_cli.formats.filenames import (
    CONFIG,
    MLX_WEIGHTS,
    PIPELINE_WEIGHTS,
    SUFFIX,
    WEIGHTS,
)
from clair_cli.formats.files import kind_of
from clair_cli.formats.stores import is_there, names_in, status_of
from clair_cli.report.earlier import read_earlier
from clair_cli.report.read import OldReport, read_report
from clair_cli.settings import DECIDED_BY_REPORT, OPTIONS, Device, Progress, options_of
from clair_cli.store.address import Place, RemotePath, place_of
from clair_cli.store.lookup import looked_up
from clair_cli.text import quoted
from clair_cli.verification.again import (
    compare_hashes,
    do_it_again,
    of_last_bits,
    use_a_device_here,
)
from clair_cli.verification.files import check_adapter, check_entries
from clair_cli.verification.reports import compare_reports, same_files
from clair_cli.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli import api

# Options of the report that are given anew: they are paths, or about this run only.
_AGAIN = ("weights", "previous", "initial", "trust_adapter", "verdicts", "earlier")
_GIVEN = {"clients", "output", "report", "force", "progress", *_AGAIN}


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found.

    Attributes:
        output, report_path: what was compared, as given.
        checked: what was compared, one sentence each.
        differences: what differs, one sentence each, with what is and what was expected; empty
            when everything is as the report says.
        notes: remarks that are no difference.
    """

    output: str
    report_path: str
    checked: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 0 the same, 3 differences."""
        return 3 if self.differences else 0


def verify(
    output: str | Place,
    clients: api.Clients | None = None,
    *,
    report: str | Place | None = None,
    weights: str | Place | Mapping[str, float] | None = None,
    previous: str | Place | tuple[Mapping[str, Tensor], Any] | None = None,
    initial: str | Place | tuple[Mapping[str, Tensor], Any] | None = None,
    trust_adapter: str | Place | tuple[Mapping[str, Tensor], Any] | None = None,
    verdicts: str | Place | None = None,
    earlier: str | Path | None = None,
    device: Device = "auto",
    engine: str = "local",
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare an adapter with its report; with `clients`, merge or refine them again as well.

    Args:
        output: what `merge` or `refine` wrote: a file or a folder.
        clients: as for `merge`. The options are those that the report records.
        report: default: the report beside a file, or in a folder.
        weights, previous, initial, trust_adapter, verdicts, earlier: given again if the report
            records them; no path is taken from it.
        device, engine, threads: as for `merge`; no report says them.
        progress: called as `progress(stage, done, total)`.

    Raises:
        UsageError: a wrong path or option, a report of another schema, or no report at all.
        InputRefused: the output can't be read.
    """
    texts = {"output": output, "report": report, "clients": clients, "earlier": earlier}
    for name, value in texts.items():
        if isinstance(value, str) and not value:
            raise UsageError(f"{name} is an empty path")
    for name, run_by in (("device", device), ("engine", engine), ("threads", threads)):
        OPTIONS[name].value(name, run_by)
    given = looked_up(place_of(output))
    _check_readable(given)
    target = _folder_of(given) or given
    path = report_of(target) if report is None else looked_up(place_of(report))
    if not path.exists():
        raise UsageError(
            f"no report {quoted(path.as_posix())}, so nothing says what the adapter should be",
            hint="" if report else "give it with --report",
        )
    old = read_report(path, __version__)
    inputs = dict(
        zip(_AGAIN, (weights, previous, initial, trust_adapter, verdicts, earlier), strict=True)
    )
    if clients is None and any(value is not None for value in inputs.values()):
        raise UsageError(f"{', '.join(_AGAIN)}: these are for merging again, so give CLIENTS too")
    if old.command == "refine" and not target.is_dir():
        raise UsageError(f"{quoted(target.as_posix())} is a file, and refine writes a folder")
    options = {} if clients is None else _options(old, inputs)
    if options.get("earlier") is not None:
        _check_earlier(place_of(options["earlier"]), old)
    differences = list(_compare_files(target, old))
    checked = [_what_was_compared(old)]
    notes: tuple[str, ...] = ()
    if clients is not None and old.adapters:
        remarks = use_a_device_here(options, device)
        options |= {"threads": threads, "progress": progress}
        file = target if target.is_file() else None
        again, hashes = do_it_again(clients, old, options, engine, file)
        found, notes = compare_reports(old, again)
        if not old.limits_kept:
            remarks.append("the report was made with a --limit higher than is taken from a report")
        others = list(compare_hashes(old, hashes))
        if others and same_files(old.data, again):
            remarks.append(of_last_bits(options["device"]))
        notes = (*remarks, *notes)
        differences += [*others, *found]
        checked.append(f"{old.command} of {len(old.data['clients'])} clients again")
    return VerifyResult(
        given.as_posix(), path.as_posix(), tuple(checked), tuple(differences), notes
    )


def report_of(output: Place) -> Place:
    """The place of an output's report, where `--report` names no other."""
    if output.is_dir():
        return output / "report.json"
    name = output.name
    stem = name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name
    return output.with_name(stem + ".report.json")


def _folder_of(output: Place) -> Place | None:
    """The folder that clair wrote, if `output` is its weights file."""
    known = {WEIGHTS: CONFIG, MLX_WEIGHTS: CONFIG, PIPELINE_WEIGHTS: "report.json"}
    beside = known.get(output.name)
    if beside is None or report_of(output).exists():
        return None
    if not (output.parent / beside).exists():
        return None
    if isinstance(output, RemotePath):  # whose other files were not looked for
        return looked_up(replace(output.parent, tree=None))
    return output.parent


def _check_readable(output: Place) -> None:
    shown = quoted(output.as_posix())
    if not is_there(output):
        raise UsageError(f"output {shown} does not exist")
    try:
        if output.is_dir():
            names_in(output)
            return
        if not output.is_file():
            raise UsageError(f"output {shown} is {kind_of(status_of(output, follow=True).st_mode)}")
        if isinstance(output, Path):
            with open(output, "rb"):
                pass
    except OSError as error:
        raise InputRefused(f"output {shown} can't be read: {error.strerror}") from None


def _what_was_compared(old: OldReport) -> str:
    count = len(old.adapters)
    what = "adapter" if count == 1 else "adapters"
    return f"{count} {what}: hash, {len(old.shapes)} modules, their shapes, rank and scale"


def _compare_files(target: Place, old: OldReport) -> Iterator[str]:
    if not old.adapters:
        why = old.data["cohort"].get("outcome_text") or "the run made none"
        yield f"the report names no adapter, so nothing vouches for this one ({why})"
        return
    for adapter in old.adapters:
        yield from check_adapter(target / adapter.folder, adapter, old.shapes, old.limits)
    if target.is_dir():
        yield from check_entries(target, old)


def _options(old: OldReport, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded options, with the inputs that are given anew."""
    declared = options_of(old.command)
    known = declared.keys() | {option.older for option in declared.values()}
    options = {name: value for name, value in old.options.items() if name not in _GIVEN}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"the report records the option {quoted(unknown[0])}, unknown to this "
                         f"clair {__version__}")  # fmt: skip
    for name, value in inputs.items():
        flag = f"--{name.replace('_', '-')}"
        recorded = old.options.get(name)
        if recorded is not None and value is None:
            raise UsageError(
                f"the report was made with {flag} {quoted(recorded)}", hint=f"give {flag} again"
            )
        if recorded is None and value is not None:
            raise UsageError(f"the report was made without {flag}")
        if name in declared:
            options[name] = value
    if inputs["verdicts"] is not None:
        options = {n: v for n, v in options.items() if n not in DECIDED_BY_REPORT}
    options["limit"] = old.limits
    return options


def _check_earlier(folder: Place, old: OldReport) -> None:
    """Refuse a folder that lacks an earlier report which the old one was made with.

    Raises:
        UsageError: it does, or it can't be read.
    """
    inputs = old.data.get("inputs", {})
    found = read_earlier(folder).chain(inputs.get("previous"))
    for number in range(len(found.rounds) + 1, len(inputs) + 1):
        theirs = inputs.get(f"earlier_{number}")
        if theirs is not None:
            raise UsageError(
                f"--earlier {quoted(folder.as_posix())} lacks the report of {_ago(number)}, which "
                f"had sha256 {quoted(theirs)}",
                hint="; ".join(r.text for r in found.remarks if r.code == "earlier_refused"),
            )


def _ago(number: int) -> str:
    return "the round before" if number == 1 else f"{number} rounds before"
