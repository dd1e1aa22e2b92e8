"""How long Ctrl-C takes to answer, at several moments of a merge.

python benchmarks/interrupt.py benchmarks/.cache/speed/1b-k16-r16-lall [--moments 8]
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def answer(cohort: Path, after: float) -> tuple[float, int, str]:
    """Seconds from the signal to the end of the process, its code and its last words."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "merged.safetensors"
        process = subprocess.Popen(
            [sys.executable, "-m", "clair_cli", "merge", str(cohort), "-o", str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(after)
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        words = process.communicate()[1]
        seconds = time.perf_counter() - start
        left = [path.name for path in Path(name).iterdir()]
        placed = process.returncode == 0 or "results are in place" in words
        assert not left or placed, left
        return seconds, process.returncode, words.strip().splitlines()[-1] if words else ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--moments", type=int, default=8)
    parser.add_argument("--every", type=float, default=0.5, help="seconds from moment to moment")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
    slowest = 0.0
    for number in range(given.moments):
        after = given.every * (number + 1)
        seconds, code, words = answer(given.cohort, after)
        slowest = max(slowest, seconds if code else 0.0)
        print(f"after {after:.2f} s: {seconds:.2f} s, exit code {code}: {words}")
    print(f"slowest answer: {slowest:.2f} s")


if __name__ == "__main__":
    main()
