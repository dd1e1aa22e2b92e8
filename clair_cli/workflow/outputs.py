"""Results as files: what is refused before any work, and the report before the adapter.

Each is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from clair_cli.errors import OutputError, UsageError
from clair_cli.formats.filenames import SUFFIX
from clair_cli.formats.safetensors.writer import Parts
from clair_cli.output.adapter_files import AdapterFiles
from clair_cli.output.draft import Content, Draft
from clair_cli.output.objects import check_output, remove_place
from clair_cli.output.publish import Output, publish
from clair_cli.output.targets import check_distinct, check_folder_name, check_room, resolve
from clair_cli.rendered.formats import FORMATS
from clair_cli.report.encode import records_nothing, report_json
from clair_cli.report.model import Report
from clair_cli.settings import Settings
from clair_cli.store.address import Place, RemotePath
from clair_cli.workflow.provenance import CARD, model_card, refined_card
from clair_cli.workflow.result_limits import check_report

REPORT = "report.json"


def default_report(settings: Settings, *, adapter: bool) -> Place | None:
    """Where the report goes when `--report` does not say.

    Beside a single file (`merged.report.json`), inside a folder; when no adapter is written,
    beside the folder too, so that what stands there is untouched.
    """
    output = settings.output
    if output is None or settings.command == "inspect":
        return output
    if settings.one_file:
        return output.with_name(output.name[: -len(SUFFIX)] + ".report.json")
    return output / REPORT if adapter else output.with_name(output.name + ".report.json")


def check_outputs(settings: Settings) -> None:
    """Refuse outputs that can't or shouldn't be written, before any work is done.

    Raises:
        UsageError, OutputError: as `check_target`; or the output and the report are one place, or
            a folder's name ends like a file's. Wrong use of either counts before an output that
            can't be written.
    """
    beside = (
        settings.weights, settings.previous, settings.initial, settings.trust_adapter,
        settings.verdicts,
    )  # fmt: skip
    inputs = [p for p in (settings.clients, *beside)
              if isinstance(p, (Path, RemotePath))]  # fmt: skip
    output, report = settings.output, settings.json_report
    is_file = settings.one_file or settings.command == "inspect"
    if output is not None and not is_file:
        check_folder_name(output, or_file=settings.command == "merge")
    refused: list[OutputError | None] = []
    if output is not None:
        kind: Literal["file", "folder"] = "file" if is_file else "folder"
        refused.append(_refusal(output, kind, settings.force, inputs))
    _check_reports(settings)
    if report is None and settings.command != "inspect":
        # a folder's own report lies inside it; without an adapter it goes beside
        report = default_report(settings, adapter=settings.one_file)
    if report is not None:
        refused.append(_refusal(report, "file", _may_replace(report, settings), inputs))
    for other in settings.report:
        if other.format != "json":
            refused.append(_refusal(other.path, "file", settings.force, inputs))
    for error in filter(None, refused):
        raise error


def _check_reports(settings: Settings) -> None:
    """Refuse reports that can't be made here, or are in one place with another output.

    Raises:
        UsageError: says which.
    """
    places = [] if settings.output is None else [("-o", settings.output)]
    usual = default_report(settings, adapter=False)
    if usual is not None and settings.json_report is None and settings.command != "inspect":
        places.append(("the JSON report", usual))
    for report in settings.report:
        if report.to_stdout:
            raise UsageError(f"report is {str(report)!r}: functions write to no standard output")
        FORMATS[report.format].check()
        option = "--report" if report.format == "json" else f"--report {report.format}="
        for first, place in places:
            check_distinct(first, place, option, report.path)
        places.append((option, report.path))


def _refusal(
    path: Place, kind: Literal["file", "folder"], force: bool, inputs: Sequence[Place]
) -> OutputError | None:
    """Why an output can't be written, or None. Raises UsageError as `check_target`."""
    try:
        check_output(path, force=force, kind=kind, inputs=inputs)
    except OutputError as error:
        return error
    return None


def check_least_room(settings: Settings, shapes: Iterable[tuple[int, int]]) -> None:
    """Refuse a disk that can't even hold the smallest adapter these settings may give.

    Args:
        shapes: (out, in) of the modules that the result will have.

    Raises:
        OutputError: see `check_room`.
    """
    if settings.output is None or isinstance(settings.output, RemotePath):
        return
    from clair_cli.maths.merge.mean import SERVING_RANKS  # it imports torch

    rank = settings.rank if isinstance(settings.rank, int) else 1
    rank = SERVING_RANKS[0] if settings.rank == "auto" else rank
    size = 4 if settings.dtype == "float32" else 2
    least = sum(size * rank * (out + in_) for out, in_ in shapes)
    check_room(resolve(settings.output).parent, least, settings.output)


def write_report_only(report: Report, settings: Settings) -> Place | None:
    """Publish the report of a run without an adapter; returns where its JSON is, or None for
    nowhere."""
    usual = default_report(settings, adapter=False)
    outputs = _asked(report, settings, usual)
    if usual is not None and (settings.json_report is None or settings.command == "inspect"):
        outputs.insert(0, _report_output(usual, report, settings))
    publish(outputs)
    return settings.json_report or usual


def write_merged(
    report: Report, files: AdapterFiles, settings: Settings, base_model: object = None
) -> Place | None:
    """Publish a merged adapter and its report; returns the report's path.

    Args:
        base_model: as the config names it, for a folder's model card.
    """
    output = settings.output
    if settings.stream is not None:
        asked, parts = _asked(report, settings, None), files.weights
        assert not isinstance(parts, Draft), "a stream has none"
        publish(asked, between=lambda: _write_stream(parts, settings.stream))
        return settings.json_report
    if output is None:
        return _write_asked(report, settings)
    if settings.one_file:
        usual = default_report(settings, adapter=True)
        outputs = _asked(report, settings, usual)
        if settings.json_report is None and usual is not None:
            outputs.insert(0, _report_output(usual, report, settings))
        publish([*outputs, Output(output, files.weights, settings.force)])
        return settings.json_report or usual
    path = settings.json_report or default_report(settings, adapter=True)
    card = model_card(report, base_model).encode("utf-8")
    _write_folder(report, {**files.folder, REPORT: _text(report), CARD: card}, settings)
    return path


def write_refined(
    report: Report,
    clients: Mapping[str, AdapterFiles],
    settings: Settings,
    base_models: Mapping[str, object],
) -> Place | None:
    """Publish one folder per client and the report, as one folder.

    Args:
        base_models: by client, as its config names it, for the folder's model card.
    """
    if settings.output is None:
        return _write_asked(report, settings)
    files: dict[str, Content] = {REPORT: _text(report)}
    for folder, adapter in clients.items():
        files |= {f"{folder}/{name}": data for name, data in adapter.folder.items()}
    assert report.refined is not None
    sent = {client.name: client for client in report.clients}
    for made in report.refined.clients:
        card = refined_card(report, sent[made.name], made, base_models.get(made.name))
        files[f"{made.name}/{CARD}"] = card.encode("utf-8")
    _write_folder(report, files, settings)
    return settings.json_report or default_report(settings, adapter=True)


def _write_folder(report: Report, files: Mapping[str, Content], settings: Settings) -> None:
    """Publish a folder, after the reports that `--report` asked for; a report beside it that an
    earlier run without an adapter left there goes."""
    assert settings.output is not None
    usual = default_report(settings, adapter=True)
    publish([*_asked(report, settings, usual), Output(settings.output, files, settings.force)])
    beside = default_report(settings, adapter=False)
    if beside is not None and beside != settings.json_report and records_nothing(beside):
        remove_place(beside)


def _report_output(path: Place, report: Report, settings: Settings) -> Output:
    return Output(path, _text(report), _may_replace(path, settings))


def _may_replace(path: Place, settings: Settings) -> bool:
    return settings.force or records_nothing(path)


def _write_asked(report: Report, settings: Settings) -> Place | None:
    publish(_asked(report, settings, None))
    return settings.json_report


def _asked(report: Report, settings: Settings, usual: Place | None) -> list[Output]:
    """The reports that `--report` asked for, JSON first.

    Args:
        usual: where the JSON is if `--report` does not say; None for nowhere.
    """
    path = settings.json_report
    outputs = [] if path is None else [_report_output(path, report, settings)]
    for other in settings.report:
        if other.format != "json":
            place = settings.json_report or usual
            data = FORMATS[other.format].render(report, "" if place is None else place.as_posix())
            outputs.append(Output(other.path, data, settings.force))
    return outputs


def _write_stream(parts: Parts, stream: Any) -> None:
    """All of an adapter to an open binary file.

    Raises:
        OutputError: the system refuses.
    """
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                written = stream.write(view[: 2**20])
                view = view[2**20 if written is None else written :]
        if hasattr(stream, "flush"):
            stream.flush()
    except OSError as error:
        raise OutputError(f"the adapter was not written: {error.strerror}") from error


def _text(report: Report) -> bytes:
    """The report's bytes; raises OutputError if clair could not read them."""
    text = report_json(report).encode("utf-8")
    check_report(len(text))
    return text
