"""The code that a GPU runs, on a device that is none but keeps its tensors apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pretend"
CASES = [str(FOLDER / name) for name in ("cases.py", "files.py")]


def test_everything_runs_on_a_device_that_is_not_the_cpu() -> None:
    """In a process of its own: torch can't be told to forget a device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CASES]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=FOLDER.parents[1]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert " passed" in done.stdout or " skipped" in done.stdout
