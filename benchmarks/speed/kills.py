"""Kill whole `clair merge --force` runs at random moments, and look at what is in place.

    python -m benchmarks.speed.kills [--kills 100] [--signals KILL TERM INT] [--seed 0]

Each run merges the sample round over the result of another one, at another rank, and gets one
signal at a random moment between its start and its usual end. Afterwards the adapter and its
report must be the old pair or the new one, byte for byte, and agree by `clair verify`; the exit
code must be 0 or the signal's; a signal that can be handled must leave no temporary file. The one
state between the two renames, the new report with the old adapter, may only be left by SIGKILL, and
is counted. Exit code 1 if anything else is found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import clair_cli  # noqa: E402
from benchmarks.speed.speed import compile_package  # noqa: E402

SAMPLE = ROOT / "sample_adapters" / "clients"
OUT, REPORT = "merged.safetensors", "merged.report.json"
RANKS = ("8", "16")


@dataclass(frozen=True)
class Pair:
    """Hashes of an adapter and its report."""

    adapter: str
    report: str


@dataclass(frozen=True)
class Ended:
    """How a run ended. place: "old", "new", "between", or what is wrong."""

    code: int
    place: str
    left: int
    words: str


def start(clients: Path, folder: Path, rank: str) -> subprocess.Popen[str]:
    """Its handlers are Python's own, whatever this process ignores."""
    return subprocess.Popen(
        [sys.executable, "-m", "clair_cli", "merge", str(clients), "-o", OUT, "--force", "--fresh",
         "--rank", rank],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def pair_in(folder: Path) -> Pair:
    """What is in place; "absent" for a file that is not."""
    found = []
    for name in (OUT, REPORT):
        path = folder / name
        there = path.exists()
        found.append(hashlib.sha256(path.read_bytes()).hexdigest() if there else "absent")
    return Pair(*found)


def whole_run(clients: Path, folder: Path, rank: str) -> float:
    """Seconds of a run that nobody stops."""
    begin = time.perf_counter()
    process = start(clients, folder, rank)
    words = process.communicate()[1]
    assert process.returncode == 0, words
    return time.perf_counter() - begin


def place_of(folder: Path, old: Pair, new: Pair) -> str:
    """Which pair is in place, and whether clair finds that adapter and report agree."""
    found = pair_in(folder)
    if found == Pair(old.adapter, new.report):
        return "between"
    if found not in (old, new):
        return f"torn: adapter {found.adapter[:8]}, report {found.report[:8]}"
    differences = clair_cli.verify(folder / OUT).differences
    if differences:
        return f"verify: {differences[0]}"
    return "new" if found == new else "old"


def killed_run(
    clients: Path, folder: Path, rank: str, number: int, after: float, pairs: Sequence[Pair]
) -> Ended:
    """Send one signal to one run, look at what it left, and remove temporary files.

    Args:
        pairs: the old and the new one.
    """
    process = start(clients, folder, rank)
    time.sleep(after)
    process.send_signal(number)
    words = process.communicate()[1]
    place = place_of(folder, *pairs)
    stale = [path for path in folder.iterdir() if path.name not in (OUT, REPORT)]
    for path in stale:
        path.unlink()
    return Ended(process.returncode, place, len(stale), words)


def wrong(ended: Ended, number: int) -> str:
    """What must not be, or ""."""
    kill = number == signal.SIGKILL
    codes = {0, -number} if kill else {0, -number, 128 + number}
    if number == signal.SIGINT and ended.code == 1 and "clair_cli" not in ended.words:
        return ""  # Python's own start was interrupted, before a line of clair's
    if ended.code not in codes:
        return f"exit code {ended.code}: {ended.words[-1500:]}"
    if ended.place not in ("old", "new", *(["between"] if kill else [])):
        return ended.place
    if ended.code == 0 and ended.place != "new":
        return "exit code 0, and the old pair"
    if ended.left and not kill:
        return f"{ended.left} temporary files"
    return ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=Path, default=SAMPLE)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", nargs="+", default=["KILL", "TERM", "INT"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("SIGINT", "SIGTERM"):  # nohup and & leave some ignored, and children inherit it
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    compile_package()
    clients, chance = given.clients.resolve(), random.Random(given.seed)
    counts, failed = Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="clair-kills-") as name:
        folder, pairs, times = Path(name), {}, []
        for rank in RANKS * 2:
            times.append(whole_run(clients, folder, rank))
            pairs[rank] = pair_in(folder)
        assert pairs[RANKS[0]] != pairs[RANKS[1]]
        usual, there = statistics.median(times[1:]), RANKS[1]
        for turn in range(given.kills):
            rank = RANKS[1 - RANKS.index(there)]
            number = signal.Signals[f"SIG{given.signals[turn % len(given.signals)]}"]
            after = chance.uniform(0.0, 1.05 * usual)
            ended = killed_run(clients, folder, rank, number, after, (pairs[there], pairs[rank]))
            what = wrong(ended, number)
            if what:
                failed += 1
                print(f"{number.name} after {after:.3f} s: {what}", flush=True)
            counts[f"{number.name}: exit code {ended.code}, {ended.place[:8]} pair"] += 1
            counts["temporary files left by SIGKILL"] += ended.left
            if ended.place == "new":
                there = rank
            elif ended.place != "old":
                whole_run(clients, folder, there)
        print(f"{given.kills} runs of {usual:.2f} s stopped at random: {failed} wrong")
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
