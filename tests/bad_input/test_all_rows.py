"""The contract is covered: every row has a test, or belongs to later work."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter

import tests.bad_input as package
from tests.bad_input.table import LATER, ROWS


def covered() -> Counter[int]:
    """Row numbers by how many cases they have, read off the tests' parameters."""
    found: Counter[int] = Counter()
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("test_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, function in vars(module).items():
            marks = getattr(function, "pytestmark", []) if name.startswith("test_") else []
            for mark in marks:
                if mark.name == "parametrize":
                    for case in mark.kwargs.get("ids") or ():
                        match = re.match(r"row-(\d{3})", str(case))
                        if match:
                            found[int(match[1])] += 1
    return found


def test_every_row_has_a_test() -> None:
    found = covered()
    print(f"{len(found)} of {len(ROWS)} rows covered by {found.total()} cases")
    assert set(ROWS) == set(range(1, 107))
    assert set(found) == set(ROWS) - LATER
    assert len(found) == 103
