"""Fuzz whole rounds: seven honest clients and a hostile one, and what must hold whatever it sent.

    python fuzz/fuzz_rounds.py --seconds 600
    python fuzz/fuzz_rounds.py --seed 0 --round 17     one round again

Each round is made from the seed and its number alone. It is merged in this process, every 50th by
the command line as well, and checked with an oracle of numpy's:

    exception, exit   nothing but an exit code of 0, 3, 4 or 5; 2 for a hostile --previous
    refused, rejected seven honest clients are merged or judged, and none of them is rejected
    bound             no module's merged norm is above the weighted sum of the norms that were
                      reported, and (true bound) of those that the files have
    norm, total, error, plain distance
                      what the report says is what the files hold
    not finite, modules, verify
                      the result is finite, has what the report says, and clair reads it
    time, memory      at most 3 x an honest round's time and 0.5 s; 3 x the file and 64 MB

Exit code 1, and one line to do it again, for every round that fails.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import clair_cli
from clair_cli.errors import ClairError
from fuzz.hostile_changes import hostile_round
from fuzz.round_checks import (
    Finding,
    Oracle,
    check_end,
    check_merged,
    deltas_of,
    read_written,
    reported,
)
from fuzz.small_clients import N_HONEST, Round, honest_round, write_round

HANGS = 120  # seconds after which a round is given up
MB = 1_000_000
VERIFY_EVERY, COMMAND_EVERY = 20, 50


class TooLong(BaseException):
    """A round does not end. No `Exception`: nothing may take it for a client's fault."""


@dataclass
class Merged:
    """What one call of `merge` gave, and cost."""

    report: Any = None
    error: BaseException | None = None
    code: int = 0
    cpu: float = 0.0
    grown: int = 0


def generator(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, number])


def merge(folder: Path, made: Round) -> Merged:
    """Merge the round that lies in a folder, into OUT beside its clients."""
    result = Merged()
    previous = None if made.previous is None else folder / "previous"
    peak, start = peak_memory(), time.process_time()
    try:
        result.report = clair_cli.merge(
            folder / "clients", folder / "out.safetensors", previous=previous, **made.options
        ).report
        result.code = result.report.exit_code
    except ClairError as error:
        result.error, result.code = error, error.exit_code
    except (Exception, TooLong) as error:
        result.error, result.code = error, 1
    result.cpu, result.grown = time.process_time() - start, peak_memory() - peak
    return result


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_round(made: Round, folder: Path, merged: Merged) -> Iterator[Finding]:
    """Everything that must hold of one merged round, but for what it cost."""
    if merged.error is not None:
        if isinstance(merged.error, ClairError) and made.hostile_previous and merged.code == 2:
            return
        kind = "exit" if isinstance(merged.error, ClairError) else "exception"
        yield Finding(kind, f"{type(merged.error).__name__}: {str(merged.error)[:200]}")
        return
    report = merged.report
    yield from check_end(made, report, folder / "clients")
    if report.merged is None:
        return
    clients = reported(report, made, folder / "clients")
    deltas = {k: deltas_of(made.clients[k]) for k, c in clients.items() if c.verdict != "rejected"}
    before = {} if made.previous is None else deltas_of(made.previous)
    oracle = Oracle(report, clients, deltas, before)
    with np.errstate(all="ignore"):
        yield from check_merged(oracle, read_written(folder / "out.safetensors"))


def check_verify(made: Round, folder: Path) -> Iterator[Finding]:
    """That clair reads the result, and finds the same when it merges again."""
    previous = None if made.previous is None else folder / "previous"
    try:
        found = clair_cli.verify(folder / "out.safetensors", folder / "clients", previous=previous)
    except Exception as error:
        yield Finding("verify", f"{type(error).__name__}: {str(error)[:200]}")
        return
    for words in found.differences:
        yield Finding("verify", words[:200])


def check_command(made: Round, folder: Path, merged: Merged) -> Iterator[Finding]:
    """That the command line ends with the same code and writes the same bytes."""
    given = [sys.executable, "-m", "clair_cli", "merge", str(folder / "clients"),
             "-o", str(folder / "again.safetensors"), "-q"]  # fmt: skip
    given += [] if made.previous is None else ["--previous", str(folder / "previous")]
    for name, value in made.options.items():
        option = f"--{name.replace('_', '-')}"
        given += ([option] if value else []) if isinstance(value, bool) else [option, str(value)]
    done = subprocess.run(given, capture_output=True, cwd=Path(__file__).parents[1], timeout=HANGS)
    if done.returncode != merged.code:
        words = done.stderr[-200:].decode(errors="replace")
        yield Finding("command", f"exit code {done.returncode}, in Python {merged.code}: {words}")
        return
    one, other = folder / "out.safetensors", folder / "again.safetensors"
    if one.exists() != other.exists() or (one.exists() and one.read_bytes() != other.read_bytes()):
        yield Finding("command", "the command line writes another adapter")


def check_cost(merged: Merged, size: int, honest: float) -> Iterator[Finding]:
    if merged.cpu > 3 * honest + 0.5:
        yield Finding("time", f"{merged.cpu:.2f} CPU s, an honest round {honest:.2f}")
    if merged.grown > 3 * size + 64 * MB:
        yield Finding("memory", f"{merged.grown / MB:.0f} MB more for {size / MB:.2f} MB")


def run_round(
    seed: int, number: int, folder: Path, honest: float | None = None
) -> tuple[Round, Merged, list[Finding]]:
    """Make, merge and check one round in a new folder.

    Args:
        honest: CPU seconds of an honest round; None: cost is not checked.
    """
    made = hostile_round(generator(seed, number))
    size = write_round(folder, made)
    merged = merge(folder, made)
    found = list(check_round(made, folder, merged))
    if number % VERIFY_EVERY == 0 and merged.report is not None and merged.report.merged:
        found += check_verify(made, folder)
    if number % COMMAND_EVERY == 0 and not isinstance(merged.error, TooLong):
        found += check_command(made, folder, merged)
    if honest is not None and not made.hostile_previous:  # that one is no stranger's
        found += check_cost(merged, size, honest)
    return made, merged, found


def honest_seconds(seed: int, room: Path, rounds: int = 12) -> float:
    """Median CPU time of honest rounds, once everything is imported and warm."""
    times = []
    for number in range(-rounds, 0):
        folder = room / f"honest{number}"
        made = honest_round(generator(seed, number + 2**32))
        write_round(folder, made)
        merged = merge(folder, made)
        found = list(check_round(made, folder, merged))
        assert not found, f"an honest round fails: {found}"
        times.append(merged.cpu)
        shutil.rmtree(folder)
    return statistics.median(times[2:])


def cpu_seconds() -> float:
    """Of this process and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def give_up(_number: int, _frame: object) -> None:
    raise TooLong(f"no end after {HANGS} s")


def fuzz(given: argparse.Namespace, room: Path) -> Counter[str]:
    """Rounds until the CPU time is spent; findings by kind."""
    signal.signal(signal.SIGALRM, give_up)
    honest, start, kinds = honest_seconds(given.seed, room), cpu_seconds(), Counter[str]()
    codes, number = Counter[int](), given.round or 0
    while True:
        folder = room / "round"
        signal.alarm(HANGS)
        made, merged, found = run_round(given.seed, number, folder, honest)
        signal.alarm(0)
        codes[merged.code] += 1
        kinds.update({finding.kind for finding in found})
        for finding in found[:3]:
            print(f"{finding.kind}: {finding.words}", flush=True)
        if found:
            print(f"  {', '.join(made.words)}; {made.options}\n  again: python fuzz/fuzz_rounds.py "
                  f"--seed {given.seed} --round {number}", flush=True)  # fmt: skip
            if given.keep is not None:
                kept = given.keep / f"seed-{given.seed}-round-{number}"
                shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder)
        number += 1
        if given.round is not None or cpu_seconds() - start >= given.seconds:
            break
    ends = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    failed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
    print(
        f"{codes.total()} rounds of {N_HONEST} + 1 clients, {cpu_seconds() - start:.0f} CPU s, "
        f"an honest one {honest:.3f}; exit codes {ends}; findings: {failed}"
    )
    return kinds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="only this round")
    parser.add_argument("--keep", type=Path, help="folder that gets rounds that fail")
    given = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="clair-fuzz-", dir=memory) as room:
        raise SystemExit(1 if fuzz(given, Path(room)) else 0)


if __name__ == "__main__":
    main()
