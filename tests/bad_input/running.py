"""Run `clair` in this process and check what every row promises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import cohorts

OUT, REPORT = "m.safetensors", "m.report.json"
GOOD = cohorts.honest(3)


@dataclass(frozen=True)
class Ran:
    """A finished run. `report` is None if none was written."""

    code: int
    out: str
    words: str
    report: dict[str, Any] | None

    def reason(self, name: str) -> str:
        assert self.report is not None
        return cohorts.reasons(self.report, name)

    @property
    def verdicts(self) -> dict[str, str]:
        assert self.report is not None
        return cohorts.verdicts(self.report)


def merge(*args: object, out: str = OUT, report: str = REPORT) -> Ran:
    """`clair merge clients -o OUT ARGS` in the working directory."""
    return run("merge", "clients", "-o", out, *args, report=report)


def run(*args: object, report: str = REPORT) -> Ran:
    """Any command: no traceback, no character that steers a terminal, no file left over."""
    result = cohorts.clair(*args)
    words = result.stderr
    assert "Traceback" not in words
    for line in [*words.split("\n"), *result.stdout.split("\n")]:
        assert line.isprintable(), ascii(line)
        assert not line.lstrip().startswith("::"), line
    assert not list(Path().glob(".*.tmp")), "a temporary file is left"
    text = Path(report).read_text() if Path(report).is_file() else None
    try:
        found = None if text is None else cohorts.check_report(text)
    except json.JSONDecodeError:
        found = None  # something else that was there before
    return Ran(result.exit_code, result.stdout, words, found)
