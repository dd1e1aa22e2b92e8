"""One cohort, read from several places: what may differ between the reports is where things are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests import cohorts


def merged(clients: object, output: Path, *args: object) -> tuple[dict[str, str], Any]:
    """`clair merge CLIENTS -o OUTPUT`: SHA-256 of each file of the output folder, the report left
    out; and the report without the places in it."""
    ran = cohorts.clair("merge", clients, "-o", output, "-q", *args)
    assert "Traceback" not in ran.stderr
    folder = output if output.is_dir() else output.parent
    report = output / "report.json" if output.is_dir() else output.with_suffix(".report.json")
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.endswith("report.json")
    }
    return found, placeless(report.read_text(encoding="utf-8"), str(clients), str(output))


def placeless(text: str, *places: str) -> Any:
    """A report in which places are named alike."""
    for place in places:
        text = text.replace(place.rstrip("/"), "PLACE")
    return json.loads(text)
