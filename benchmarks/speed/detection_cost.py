"""What detection, decomposition and report cost beside the Gram matrices they start from.

    python -m benchmarks.speed.detection_cost benchmarks/.cache/speed/1b-k16-r16-lall

One thread, in one process, after torch is imported.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clair_cli
from clair_cli.report.encode import report_json
from clair_cli.workflow import compare

SECONDS: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its time added up under a name."""

    def call(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **options)
        SECONDS[name] += time.perf_counter() - start
        return result

    return call


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cohort", type=Path)
    given = parser.parse_args()
    compare.grams = timed("Grams", compare.grams)
    compare.gather = timed("similarities", compare.gather)
    begun: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "judging":
            begun.setdefault(stage, time.perf_counter())
            if done == total:
                SECONDS["judging"] = time.perf_counter() - begun[stage]

    result = clair_cli.inspect(given.cohort, threads=1, progress=progress, fresh=True)
    timed("report", report_json)(result.report)
    for name, seconds in SECONDS.items():
        print(f"{name:24}{seconds:8.2f} s")
    rest = sum(SECONDS.values()) - SECONDS["Grams"]
    print(f"everything but the Grams is {rest / SECONDS['Grams']:.2f} times the Grams")


if __name__ == "__main__":
    main()
