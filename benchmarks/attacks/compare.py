"""Two runs of the attack matrix, row by row: cells that were exact in one and not in the other.

    python -m benchmarks.attacks.compare OLD.json NEW.json

The files are `benchmarks.attacks.matrix --json`'s. A cell is one cohort, and is *exact* if it is
judged, every bad client is found (contaminated, minority or duplicate) and every honest one is
benign. Cells that only one file has do not count. Columns: cells in both; exact in the old file, in
the new one; exact in the old one and not in the new; of these, those in which only an honest client
that is suspicious is in the way. Rows that lose nothing are summed up in the last line.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HEADER = f"{'attack':22} {'cells':>5} {'old':>5} {'new':>5} {'lost':>5} {'by suspicion':>12}"
Cell = Mapping[str, Any]


def key(cell: Cell) -> tuple[Any, ...]:
    """What makes two cells the same one."""
    return tuple(cell[name] for name in ("attack", "pool", "size", "share", "setting"))


def is_found(cell: Cell) -> bool:
    """Whether everybody bad is found, and nobody honest is left out."""
    return bool(
        cell["outcome"] == "judged" and cell["false_flags"] == 0 and cell["hits"] == cell["bad"]
    )


def is_exact(cell: Cell) -> bool:
    """Whether, besides, no honest client is suspicious."""
    return is_found(cell) and cell["suspicious_honest"] == 0


def lines(old: Sequence[Cell], new: Sequence[Cell]) -> Iterator[str]:
    """The table."""
    before = {key(cell): cell for cell in old}
    rows: dict[str, list[tuple[Cell, Cell]]] = defaultdict(list)
    for cell in new:
        if key(cell) in before:
            rows[cell["attack"]].append((before[key(cell)], cell))
    yield HEADER
    for attack, pairs in rows.items():
        if any(is_exact(was) and not is_exact(now) for was, now in pairs):
            yield line(attack, pairs)
    every = [pair for pairs in rows.values() for pair in pairs]
    yield line(f"all {len(rows)} rows", every)


def line(title: str, pairs: Sequence[tuple[Cell, Cell]]) -> str:
    """One row."""
    lost = [now for was, now in pairs if is_exact(was) and not is_exact(now)]
    return (
        f"{title:22} {len(pairs):5} {sum(is_exact(was) for was, _ in pairs):5}"
        f" {sum(is_exact(now) for _, now in pairs):5} {len(lost):5} {sum(map(is_found, lost)):12}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    old, new = (json.loads(p.read_text(encoding="utf-8"))["cells"] for p in vars(options).values())
    for text in lines(old, new):
        print(text)


if __name__ == "__main__":
    main()
