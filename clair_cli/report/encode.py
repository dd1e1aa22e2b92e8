"""Report -> `clair.report/2`: strict, canonical JSON."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from clair_cli.errors import ClairError
from clair_cli.formats.stores import read_small
from clair_cli.report.model import SCHEMA, Report
from clair_cli.store.address import Place
from clair_cli.store.lookup import looked_up

# A larger file is no report of ours to look into: 1,000 clients of 300 modules take half of it.
MAX_REPORT = 256 * 2**20
# A report as it is written has 18 bytes for each value, and 14 without its white space. Of values
# that stand closer a parser makes up to 30 times as much memory as the file has bytes.
_BYTES_PER_VALUE = 9
_ANY_VALUES = 1_000_000  # in a small file they may stand as close as they like


def report_dict(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and numbers, keys as in the dataclasses.

    Raises:
        TypeError: a value that JSON has no word for (a tensor, a path, a numpy number).
    """
    return report.to_dict()


def report_json(report: Report) -> str:
    r"""The report as one JSON document: the same report gives the same bytes.

    Keys are sorted, characters outside ASCII escaped (so that printing it is safe anywhere),
    and one newline stands at the end. A client name that is not Unicode has its stray bytes
    as `\xNN` in the text, because many readers refuse half a surrogate pair. Every second `#`
    in a row is escaped: `##[` and `##vso[` in a line are commands to some CI systems.

    Raises:
        ValueError: a NaN or an infinity, which JSON does not have.
        TypeError: as `report_dict`.
    """
    text = _indented(report_dict(report), "\n")
    return text.replace("##", "#\\u0023") + "\n"


def _indented(value: object, line: str) -> str:
    """`json.dumps(value, sort_keys=True, indent=2, allow_nan=False)`, several times as fast: what
    holds no further container is encoded at once.

    Args:
        line: what a new line begins with at this depth, the newline included.
    """
    if not isinstance(value, (dict, list)) or not value:
        return _encoder("").encode(value)
    inner = line + "  "
    inside = value.values() if isinstance(value, dict) else value
    if not any(isinstance(item, (dict, list)) for item in inside):
        text = _encoder(inner).encode(value)
        return text[0] + inner + text[1:-1] + line + text[-1]
    encode = _encoder("").encode
    if isinstance(value, dict):
        items = [f"{encode(key)}: {_indented(value[key], inner)}" for key in sorted(value)]
        return "{" + inner + f",{inner}".join(items) + line + "}"
    return "[" + inner + f",{inner}".join([_indented(item, inner) for item in value]) + line + "]"


@lru_cache(maxsize=64)
def _encoder(line: str) -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(f",{line}", ": "))


def is_dense(data: bytes) -> bool:
    """Whether a document holds far more values than a report of its size, so that to parse it would
    take more than about eleven times its size in memory."""
    values = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    return values > _ANY_VALUES + len(data) // _BYTES_PER_VALUE


def records_nothing(path: Place) -> bool:
    """Whether a file is the report of a merge or refinement that wrote no adapter, which a later
    run of the same round may replace without `--force`."""
    try:
        path = looked_up(path)
        if path.is_symlink() or not path.is_file():
            return False
        data = read_small(path, path.as_posix(), MAX_REPORT)
        if is_dense(data):
            return False
        found = json.loads(data)
    except (ClairError, OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(found, dict)
        and str(found.get("schema")).startswith(SCHEMA.rpartition("/")[0] + "/")
        and found.get("command") != "inspect"
        and found.get("merged", 0) is None
        and found.get("refined", 0) is None
    )
