"""The file that gives each client's weight in the mean: JSON, or CSV with two columns."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.files import read_small
from clair_cli.formats.strict_json import parse_strict
from clair_cli.text import by_spelling, first_few, quoted

MAX_BYTES = 4_000_000


def read_weights(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, float]:
    r"""Read one positive weight for each client.

    Args:
        path: a JSON object `{"name": weight}`, or lines `name,weight` (UTF-8; the first line
            may be a heading). A file that begins with `{` is JSON. A name that is not UTF-8 is
            given by its bytes (in JSON also as `\udcNN` each, as Python writes what `os.listdir`
            gives), or as the report spells it, `\xNN` for each, where nobody else is called so.
        names: of the clients; each must have a weight.
        optional: of further clients that may have one (excluded clients). No others may.

    Returns:
        Name to finite weight above 0, in the order of `names`.

    Raises:
        UsageError: unreadable, malformed, a name missing, unknown or given twice, or a weight
            that is not a positive finite number. Names the path and the client.
    """
    shown = quoted(path.as_posix())
    try:
        data = read_small(Path(path.resolve()), path.as_posix(), MAX_BYTES)
    except RejectedClient as error:
        raise UsageError(f"weights file {shown}: {error.message}") from None
    is_json = data.lstrip()[:1] in (b"{", b"[")
    pairs = _json_pairs(data, shown) if is_json else _csv_pairs(data, shown)
    weights: dict[str, float] = {}
    spelt = by_spelling([*names, *optional])
    for given, value in pairs:
        name = spelt.get(given, given)
        if name in weights:
            raise UsageError(f"weights file {shown} gives client {quoted(name)} twice")
        weights[name] = _weight(name, value, shown)
    unknown = sorted(set(weights) - set(names) - set(optional))
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=1)
        raise UsageError(
            f"weights file {shown} names unknown clients: {first_few(unknown)}",
            hint=f"did you mean {quoted(close[0])}?" if close else "",
        )
    missing = [name for name in names if name not in weights]
    if missing:
        raise UsageError(f"weights file {shown} gives no weight for {first_few(missing)}")
    return {name: weights[name] for name in names}


def _json_pairs(data: bytes, shown: str) -> Iterator[tuple[str, object]]:
    try:
        what = f"weights file {shown}"
        value = parse_strict(data, what, MAX_BYTES, errors="surrogateescape")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not isinstance(value, dict):
        raise UsageError(f"weights file {shown} is not a JSON object of name to number")
    yield from value.items()


def _csv_pairs(data: bytes, shown: str) -> Iterator[tuple[str, object]]:
    try:
        text = data.decode("utf-8-sig", "surrogateescape")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UsageError(f"weights file {shown} is not readable as CSV: {error}") from None
    first = True
    for number, row in enumerate(rows, start=1):
        if not row or row == [""]:
            continue
        if len(row) != 2:
            raise UsageError(
                f"weights file {shown}, line {number}: {len(row)} columns, expected name,weight"
            )
        name, value = row[0], row[1].strip()
        try:
            yield name, float(value)
        except ValueError:
            if not first:
                yield name, value
        first = False


def _weight(name: str, value: object, shown: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not value > 0:  # type: ignore[arg-type, operator]
        raise UsageError(
            f"weights file {shown}: weight of client {quoted(name)} is {quoted(value)}, expected a "
            "finite number above 0"
        )
    return float(value)  # type: ignore[arg-type]
