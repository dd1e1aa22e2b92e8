"""Median time of `clair --help` and of `clair inspect` on the sample as whole processes, beside
Python alone and `import torch`.

python -m benchmarks.speed.start_time [--runs 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.speed import compile_package

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "clair --help": ["-m", "clair_cli", "--help"],
    "clair --version": ["-m", "clair_cli", "--version"],
    "import torch": ["-c", "import torch"],
    "clair inspect": [
        "-m",
        "clair_cli",
        "inspect",
        "sample_adapters/clients",
        "--fail-on",
        "never",
    ],
}


def seconds(arguments: list[str]) -> float:
    """Wall-clock time of one run."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )
    return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    compile_package()
    for name, arguments in COMMANDS.items():
        seconds(arguments)  # warm the page cache
        times = [seconds(arguments) for _ in range(runs)]
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name:16} median {middle:.3f} s, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
