"""Where a client's config comes from: a file beside it, the cohort's own, or the file's header."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clair_cli.errors import RejectedClient
from clair_cli.formats.adapter_config import AdapterConfig, assumed_config, parse_config
from clair_cli.formats.find_clients import open_path
from clair_cli.formats.limits import Limits
from clair_cli.formats.regular_file import read_small
from clair_cli.formats.strict_json import parse_strict, quoted

HEADER_FIELD = "lora_adapter_metadata"


def find_config(
    paths: Iterable[Path],
    metadata: Mapping[str, str],
    *,
    root: Path,
    assume_alpha: float | str | None,
    limits: Limits,
) -> tuple[AdapterConfig, tuple[str, ...]]:
    """The config of one client, and a note if it had to be assumed.

    Args:
        paths: files to try, in order; the first that exists is the one.
        metadata: the weights file's header metadata, tried next.
        root: real path of the cohort's folder, which no link may leave.
        assume_alpha: alpha to assume if there is none at all, or "rank"; None refuses.

    Raises:
        RejectedClient: none found, or the one found is bad; `path` is the config file.
    """
    tried = tuple(paths)
    for path in tried:
        if os.path.lexists(path):
            shown = path.as_posix()
            try:
                config = parse_config(_read(open_path(path, root), path.name, shown, limits))
            except RejectedClient as error:
                error.path = error.path or shown
                raise
            return config, ()
    if HEADER_FIELD in metadata:
        raw = _from_header(metadata[HEADER_FIELD], limits)
        return parse_config(raw), ()
    if assume_alpha is not None:
        text = "alpha = rank" if assume_alpha == "rank" else f"alpha = {assume_alpha}"
        return assumed_config(assume_alpha), (f"no config: {text} assumed",)
    looked = ", ".join(quoted(path.as_posix()) for path in tried)
    raise RejectedClient(
        f"no adapter config, so the scale is unknown; looked for {looked} and the header's "
        f"{HEADER_FIELD}",
        found="no config",
        expected="adapter_config.json",
        hint="add the config, or give --assume-alpha N|rank",
    )


def _read(path: Path, name: str, shown: str, limits: Limits) -> Mapping[str, Any]:
    data = read_small(path, shown, limits.max_config_bytes)
    return _object(data, name, limits)


def _object(data: bytes, what: str, limits: Limits) -> dict[str, Any]:
    try:
        value = parse_strict(data, what, limits.max_config_bytes)
    except ValueError as error:
        raise RejectedClient(str(error)) from None
    if not isinstance(value, dict):
        raise RejectedClient(f"{what} is not a JSON object", expected="a JSON object")
    return value


def _from_header(text: str, limits: Limits) -> dict[str, Any]:
    """Plain fields, or fields that all carry one common prefix ("transformer.r")."""
    raw = _object(text.encode("utf-8"), f"header's {HEADER_FIELD}", limits)
    prefixes = {key.rpartition(".")[0] for key in raw}
    if len(prefixes) > 1:
        listed = ", ".join(quoted(prefix) for prefix in sorted(prefixes))
        raise RejectedClient(
            f"header's {HEADER_FIELD} describes several adapters: prefixes {listed}",
            found=f"prefixes {listed}",
            expected="one prefix or none",
        )
    return {key.rpartition(".")[2]: value for key, value in raw.items()}
