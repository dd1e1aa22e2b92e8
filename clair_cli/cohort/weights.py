"""The file that gives each client's weight in the mean: JSON, or CSV with two columns."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Collection, Iterator, Sequence

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.stores import followed, read_small
from clair_cli.formats.strict_json import parse_strict
from clair_cli.store.address import Place
from clair_cli.store.lookup import looked_up
from clair_cli.text import by_spelling, first_few, quoted

MAX_BYTES = 4_000_000
_DELIMITERS = (",", ";", "\t")  # of equal ones the first
_DECIMAL = re.compile(r"^(\d*),(\d+)$")


def read_weights(
    path: Place, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, float]:
    r"""Read one positive weight for each client.

    Args:
        path: a JSON object `{"name": weight}`, or lines `name,weight` (UTF-8; the first line
            may be a heading). Semicolons or tabs may stand for the commas; then a decimal comma may
            be in the weight. A file that begins with `{` is JSON. A name that is not UTF-8 is
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
        data = read_small(followed(looked_up(path)), path.as_posix(), MAX_BYTES)
    except RejectedClient as error:
        raise UsageError(f"weights file {shown}: {error.message}") from None
    is_json = data.lstrip()[:1] in (b"{", b"[")
    spelt = by_spelling([*names, *optional])
    known = {*names, *optional, *spelt}
    pairs = _json_pairs(data, shown) if is_json else _csv_pairs(data, shown, known)
    weights: dict[str, float] = {}
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


def _csv_pairs(data: bytes, shown: str, names: Collection[str]) -> Iterator[tuple[str, object]]:
    """The pairs of a table with two columns. Of commas, semicolons and tabs those are between them
    that give the most clients; spreadsheets write semicolons where the comma is a decimal one."""
    text = data.decode("utf-8-sig", "surrogateescape")
    readings = {delimiter: _rows(text, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda d: _fits(readings[d], names))
    rows = readings[delimiter]
    if isinstance(rows, csv.Error):
        raise UsageError(f"weights file {shown} is not readable as CSV: {rows}")
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
            yield name, float(value if delimiter == "," else _DECIMAL.sub(r"\1.\2", value))
        except ValueError:
            if not first or (name in names and value[:1].isdigit()):  # else a heading
                yield name, value
        first = False


def _rows(text: str, delimiter: str) -> list[list[str]] | csv.Error:
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return error


def _fits(rows: list[list[str]] | csv.Error, names: Collection[str]) -> tuple[int, int]:
    """How well rows are a table of these names: rows of a known name, rows of two columns."""
    pairs = [] if isinstance(rows, csv.Error) else [row for row in rows if len(row) == 2]
    return sum(row[0] in names for row in pairs), len(pairs)


def _weight(name: str, value: object, shown: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not value > 0:  # type: ignore[arg-type, operator]
        raise UsageError(
            f"weights file {shown}: weight of client {quoted(name)} is {quoted(value)}, expected a "
            "finite number above 0"
        )
    return float(value)  # type: ignore[arg-type]
