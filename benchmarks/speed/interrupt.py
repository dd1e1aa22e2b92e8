"""How long Ctrl-C takes to answer, at several moments of a merge; and how merges end that a signal
hits at any moment of their first seconds.

python -m benchmarks.speed.interrupt benchmarks/.cache/speed/1b-k16-r16-lall [--moments 8]
python -m benchmarks.speed.interrupt sample_adapters/clients --kills 200 [--within 2]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def answer(cohort: Path, after: float, sent: int = signal.SIGINT) -> tuple[float, int, str]:
    """Seconds from the signal to the end of the process, its code and its last words."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "merged.safetensors"
        process = subprocess.Popen(
            [sys.executable, "-m", "clair_cli", "merge", str(cohort), "-o", str(out), "--fresh"],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(after)
        start = time.perf_counter()
        process.send_signal(sent)
        words = process.communicate()[1]
        seconds = time.perf_counter() - start
        left = [path.name for path in Path(name).iterdir()]
        placed = process.returncode == 0 or "results are in place" in words
        assert not left or placed, left
        return seconds, process.returncode, words.strip().splitlines()[-1] if words else ""


def kills(cohort: Path, count: int, within: float) -> None:
    """Print how often a merge ended with which code, by signal. A negative one is that of a signal
    which came while Python itself was starting; -6 would be a crash."""
    chance, ends = random.Random(0), Counter[tuple[str, int]]()
    for _ in range(count):
        sent = chance.choice(SIGNALS)
        code = answer(cohort, chance.uniform(0, within), sent)[1]
        ends[sent.name, code] += 1
    for (name, code), times in sorted(ends.items()):
        print(f"{name:8} exit code {code:4}: {times}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--moments", type=int, default=8)
    parser.add_argument("--every", type=float, default=0.5, help="seconds from moment to moment")
    parser.add_argument("--kills", type=int, default=0, help="signals at random moments instead")
    parser.add_argument("--within", type=float, default=2.0, help="seconds that these come in")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
    if given.kills:
        kills(given.cohort, given.kills, given.within)
        return
    slowest = 0.0
    for number in range(given.moments):
        after = given.every * (number + 1)
        seconds, code, words = answer(given.cohort, after)
        slowest = max(slowest, seconds if code else 0.0)
        print(f"after {after:.2f} s: {seconds:.2f} s, exit code {code}: {words}")
    print(f"slowest answer: {slowest:.2f} s")


if __name__ == "__main__":
    main()
