"""The plan of `plan.py` beside runs on this machine, by a Ray cluster that is started here.

    python -m benchmarks.scale.check --clients 8 16                     1B, under a minute
    python -m benchmarks.scale.check --clients 16 64 256 --folder DIR   at most twelve

Cohorts are made once, in --folder. Bytes are those that the cluster's processes read, and memory is
the most that one had, less those of a run of a few small clients, which are Python's, torch's and
Ray's. Memory that processes share is no process's own: `store` is what the process that used most
of Ray's object store had mapped of it, where the plan has all of it. Last come the exponents in the
number of clients, planned and found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.cohorts import make_cohort
from benchmarks.speed.speed import exponent

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Found:
    """Of one run: seconds of CPU and bytes read by its tasks, the most bytes of memory of a task,
    of the driver, and of the object store in one process; seconds of wall-clock time in all."""

    cpu: float
    read: int
    task: int
    driver: int
    store: int
    wall: float


def run(cohort: Path, threads: int) -> Found:
    """A merge in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [sys.executable, "-m", "benchmarks.scale.check", "--one", str(cohort),
                     "--folder", out, "--threads", str(threads)]  # fmt: skip
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def merge_once(cohort: Path, out: Path, threads: int) -> Found:
    """Merge, and look at all processes that were started for it before they end."""
    import time

    import clair_cli
    from clair_cli.engine.own_process import claim

    claim()  # as the command line does: nobody looks at the result in memory
    seen: list[Found] = []
    most = dict.fromkeys(("task", "driver", "store"), 0)

    def progress(stage: str, done: int, total: int) -> None:
        workers = [p for p in _descendants(os.getpid()) if b"ray::" in _bytes(p, "cmdline")]
        for kind, pids, field in (
            ("task", workers, b"RssAnon:"), ("driver", [os.getpid()], b"RssAnon:"),
            ("store", workers, b"RssShmem:"),
        ):  # fmt: skip
            found = max((1024 * _number(pid, "status", field) for pid in pids), default=0)
            most[kind] = max(most[kind], found)
        if stage == "writing" and done == total:
            seen.append(_of_tasks(workers, time.perf_counter() - start, most))

    start = time.perf_counter()
    clair_cli.merge(
        cohort, out / "merged", engine="ray", threads=threads, fresh=True, progress=progress
    )
    return seen[-1]


def _of_tasks(workers: Sequence[int], wall: float, most: Mapping[str, int]) -> Found:
    """What the processes of tasks have taken so far."""
    cpu = read = 0
    for pid in workers:
        fields = _bytes(pid, "stat").rsplit(b")", 1)[-1].split()
        cpu += int(fields[11]) + int(fields[12])
        read += _number(pid, "io", b"rchar:")
    return Found(cpu / os.sysconf("SC_CLK_TCK"), read, wall=wall, **most)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _bytes(pid, f"task/{pid}/children").split():
        found += [int(child), *_descendants(int(child))]
    return found


def _bytes(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


def _number(pid: int, name: str, field: bytes) -> int:
    lines = (line.split() for line in _bytes(pid, name).splitlines())
    return next((int(line[1]) for line in lines if line[0] == field), 0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--model", default="1b")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / ".cache" / "speed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(vars(merge_once(given.one, given.folder, given.threads))))
        return
    from benchmarks.scale.plan import RANKS, measured_rates, plan, usual_stores

    rank, rates = RANKS[given.model], measured_rates()
    nothing = given.folder / "small-k5"
    make_cohort(nothing, "small", 5, "4")
    base = run(nothing, given.threads)
    print(f"{'clients':>8}{'read GB':>16}{'CPU s of tasks':>18}{'a task MB':>16}{'driver MB':>16}"
          f"{'store MB':>16}{'wall s':>8}\n{'':8}" + f"{'planned, found':>16}" * 5)  # fmt: skip
    plans, runs = [], []
    for clients in given.clients:
        cohort = given.folder / f"{given.model}-k{clients}-r{rank}-lall"
        make_cohort(cohort, given.model, clients, str(rank))
        planned = plan(given.model, clients, rank, usual_stores())
        found = run(cohort, given.threads)
        seconds = planned.read / rates.reading + planned.products / rates.products
        plans.append((planned.read, seconds))
        runs.append((found.read - base.read, found.cpu - base.cpu))
        print(f"{clients:8}{planned.read / 1e9:8.1f}{runs[-1][0] / 1e9:8.1f}{seconds:9.0f}"
              f"{runs[-1][1]:9.0f}{planned.task / 1e6:8,.0f}{(found.task - base.task) / 1e6:8,.0f}"
              f"{planned.driver / 1e6:8,.0f}{(found.driver - base.driver) / 1e6:8,.0f}"
              f"{planned.store / 1e6:8,.0f}{(found.store - base.store) / 1e6:8,.0f}"
              f"{found.wall:8.0f}", flush=True)  # fmt: skip
    if len(given.clients) > 1:
        for name, i in (("bytes read", 0), ("CPU of tasks", 1)):
            planned_, found_ = (exponent(given.clients, [x[i] for x in each])
                                for each in (plans, runs))  # fmt: skip
            print(f"{name}: clients^{planned_:.2f} planned, clients^{found_:.2f} found")


if __name__ == "__main__":
    main()
