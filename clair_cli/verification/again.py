"""The run of a report done again, writing nothing, and its adapters beside the report's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clair_cli.engine.cluster import cluster_for
from clair_cli.engine.own_process import importing
from clair_cli.errors import UsageError
from clair_cli.report.encode import report_json
from clair_cli.report.read import OldReport
from clair_cli.settings import check_engine, make_settings
from clair_cli.store.address import Place
from clair_cli.text import quoted
from clair_cli.verification.files import made_by

if TYPE_CHECKING:
    from clair_cli import api


def use_a_device_here(options: dict[str, Any], wanted: str) -> list[str]:
    """Put the device to compute on into the options: the one that is wanted, else the one that a
    report of an earlier version records, if it is here.

    Args:
        options: of the report.
        wanted: "auto", "cpu" or "cuda".

    Returns:
        Remarks about it.

    Raises:
        UsageError: the machine has no such device.
    """
    with importing():
        from clair_cli.engine.device import choose_device

    recorded = options.get("device", "auto")
    options["device"] = wanted
    if wanted != "auto":
        return []
    if recorded in ("cuda", "mps"):  # the latter in reports of earlier versions
        try:
            choose_device(recorded)
        except UsageError:
            return [
                f"the report was made with --device {recorded}, which is not here: last bits may "
                "differ"
            ]
    options["device"] = recorded
    return []


def of_last_bits(device: str) -> str:
    """A remark for an adapter that comes out otherwise though the clients' files are the same.

    Args:
        device: that was asked for.
    """
    from clair_cli.engine.device import choose_device

    name, other = ("a CPU", "cuda") if choose_device(device).name == "cpu" else ("a GPU", "cpu")
    return (
        "CPU and GPU differ in last bits, and no report says which it was made on; this was "
        f"{name}, so try --device {other} if the adapter was made there"
    )


def do_it_again(
    clients: api.Clients,
    old: OldReport,
    options: Mapping[str, Any],
    engine: str,
    file: Place | None,
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Run the recorded command once more and write nothing.

    Args:
        file: the single file that is compared, whose header names a version; None for a folder.

    Returns:
        The new report as plain data, and the weights' SHA-256 by client's folder ("" for a merge).

    Raises:
        UsageError: the options are damaged, or the engine can't be used; see `cluster_for`.
    """
    with importing():
        from clair_cli.workflow.run import do_again

    try:
        settings = make_settings(old.command, clients, None, options)
    except (TypeError, UsageError) as error:
        raise UsageError(f"the report's options are damaged: {error}") from None
    # another file than the one that a client was bound to is a difference of the reports
    settings = replace(settings, trust=tuple(settings.trusted), engine=engine)
    check_engine(settings)
    version = None if file is None else made_by(file)
    with cluster_for(settings):
        report, files = do_again(settings, one_file=file is not None, version=version)
    hashes = {folder: adapter.sha256 for folder, adapter in files.items()}
    return json.loads(report_json(report)), hashes


def compare_hashes(old: OldReport, again: Mapping[str, str]) -> Iterator[str]:
    """Adapters that come out otherwise than the report says, one sentence each."""
    for adapter in old.adapters:
        found = again.get(adapter.folder)
        what = f"client {quoted(adapter.folder)}: " if adapter.folder else ""
        if found is None:
            yield f"{what}doing it again gives no adapter"
        elif found != adapter.sha256:
            yield (
                f"{what}doing it again gives an adapter of sha256 {found}, the report says "
                f"{adapter.sha256}"
            )
    for folder in sorted(set(again) - {a.folder for a in old.adapters}):
        yield f"client {quoted(folder)}: refined now, and not in the report"
