"""Two runs of the attack matrix beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks import compare

EXACT: dict[str, Any] = {
    "attack": "flip", "pool": "p", "size": 12, "share": 0.2, "setting": "homogeneous",
    "outcome": "judged", "bad": 2, "hits": 2, "false_flags": 0, "suspicious_honest": 0,
}  # fmt: skip
WORSE = {
    "a bad client is missed": {"hits": 1},
    "an honest client is left out": {"false_flags": 1},
    "nobody is judged": {"outcome": "undetermined"},
    "an honest client is suspicious": {"suspicious_honest": 1},
}


@pytest.mark.parametrize("change", WORSE.values(), ids=WORSE)
def test_a_cell_that_is_exact_no_more_is_lost(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {**EXACT, "attack": "noise"}
    old, new = [EXACT, kept, {**EXACT, "size": 20}], [{**EXACT, **change}, kept]
    for name, cells in (("old", old), ("new", new)):
        (tmp_path / name).write_text(json.dumps({"cells": cells}))
    compare.main([str(tmp_path / "old"), str(tmp_path / "new")])
    _, row, total = (line.split() for line in capsys.readouterr().out.splitlines())
    suspicious = str(int("suspicious_honest" in change))
    assert row == ["flip", "1", "1", "0", "1", suspicious]
    assert total == ["all", "2", "rows", "2", "2", "1", "1", suspicious]
