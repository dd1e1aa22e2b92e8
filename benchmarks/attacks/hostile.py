"""What one hostile client can cost a round, beside the same round with nobody hostile.

    python -m benchmarks.attacks.hostile [--runs 3] [--limits] [--case extra --case gauge]

The honest round: 8 PEFT clients, 24 modules of 64 x 64, rank 8, alpha 16, float32. In each case
its eighth client is replaced by one hostile input, and `clair merge` runs as a process of its own.
CPU time is the median of the runs; everything else is of the last one. Memory is the highest
resident size above the honest round's. The result and the report are beside the honest round's;
the distance is that of the merged adapter to the mean of the seven honest clients, over that
mean's norm, where modules that no honest client has count in full.

With --limits the exit code is 1 if a case takes more than 3 x the honest time, more memory than
3 x the hostile file and 64 MB, or writes more than twice the honest result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT.parent))

from benchmarks.attacks.hostile_inputs import (  # noqa: E402
    ALPHA,
    CASES,
    HOSTILE,
    MODULES,
    N_CLIENTS,
    RANK,
    factors,
    honest_round,
)
from benchmarks.speed.speed import compile_package  # noqa: E402

MB = 1_000_000
MAX_TIME, MAX_MEMORY, MORE_MEMORY, MAX_RESULT = 3.0, 3.0, 64 * MB, 2.0
MAX_REPORT = 256 * 2**20  # what clair reads
BLOCK = 1_000_000  # columns of a side that are looked at together


@dataclass(frozen=True)
class Run:
    """One whole process. code: None if it was stopped for taking too long."""

    code: int | None
    cpu: float
    peak: int
    words: int


@dataclass(frozen=True)
class Row:
    """What one case took and left behind; sizes in bytes, -1 and None where there is nothing."""

    name: str
    code: int | None
    cpu: float
    peak: int
    words: int
    file: int
    result: int
    report: int
    verdict: str
    distance: float | None


def run_clair(clients: Path, out: Path, options: Sequence[str], seconds: int) -> Run:
    """`clair merge` as a child of its own, which the system stops after so many CPU seconds."""
    command = [sys.executable, "-m", "clair_cli", "merge", str(clients), "-o", str(out), "--force"]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=words, cwd=ROOT.parent
        )
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (seconds, seconds + 1))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stopped = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        cpu = usage.ru_utime + usage.ru_stime
        code = None if stopped else process.returncode
        return Run(code, cpu, usage.ru_maxrss * 1024, words.tell())


def exact_mean() -> dict[str, np.ndarray]:
    """Delta weights of the mean of the seven honest clients."""
    each = [factors(k) for k in range(N_CLIENTS - 1)]
    scale = ALPHA / RANK / len(each)
    return {m: scale * np.sum([f[m][1] @ f[m][0] for f in each], axis=0) for m in MODULES}


def distance(out: Path) -> float:
    """Of a merged file to the honest mean, over the mean's norm."""
    mean = exact_mean()
    with out.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    config = json.loads(header.pop("__metadata__")["lora_adapter_metadata"])
    scale = config["lora_alpha"] / config["r"]
    total = {m: float(np.sum(np.square(delta))) for m, delta in mean.items()}
    away = dict(total)
    for name, entry in header.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        other = header[name.replace(".lora_A.", ".lora_B.")]
        if module not in mean:
            inner = [_gram(out, 8 + size, e, side) for e, side in ((entry, 0), (other, 1))]
            away[module] = scale**2 * float(np.sum(inner[0] * inner[1].T))
            continue
        A, B = (next(_blocks(out, 8 + size, e)) for e in (entry, other))
        away[module] = float(np.sum(np.square(scale * B @ A - mean[module])))
    return float(np.sqrt(max(0.0, sum(away.values())) / sum(total.values())))


def _blocks(path: Path, start: int, entry: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """A float32 matrix, so many columns at a time."""
    assert entry["dtype"] in ("F32", "F64"), entry["dtype"]
    kind = np.dtype({"F32": "<f4", "F64": "<f8"}[entry["dtype"]])
    rows, columns = entry["shape"]
    with path.open("rb") as file:
        for first in range(0, columns, BLOCK):
            n = min(BLOCK, columns - first)
            found = np.empty((rows, n))
            for row in range(rows):
                place = kind.itemsize * (row * columns + first)
                file.seek(start + entry["data_offsets"][0] + place)
                found[row] = np.frombuffer(file.read(n * kind.itemsize), kind)
            yield found


def _gram(path: Path, start: int, entry: Mapping[str, Any], side: int) -> np.ndarray:
    """A A' of a lora_A (side 0), B' B of a lora_B."""
    parts = _blocks(path, start, entry)
    return sum((p @ p.T if side == 0 else p.T @ p for p in parts), start=np.zeros(()))


def verdict_of(report: Path) -> str:
    """Of the hostile client, and of those honest ones that are not benign."""
    if not report.exists():
        return "no report"
    if report.stat().st_size > MAX_REPORT:
        return "report above 256 MiB"
    clients = json.loads(report.read_text())["clients"]
    honest = {f"client-{k}" for k in range(N_CLIENTS - 1)}
    found = [c["verdict"] for c in clients if c["name"] not in honest]
    counts = [c["verdict"] for c in clients if c["name"] in honest and c["verdict"] != "benign"]
    rest = f"; {len(counts)} honest {counts[0]}" if counts else ""
    return (", ".join(sorted(set(found))) or "not listed") + rest


def prepare(name: str, clients: Path) -> int:
    """Write a case's round; the bytes of what is not an honest client's."""
    case = CASES.get(name)
    honest_round(clients, files=case is not None and case.files)
    if case is not None:
        case.make(clients)
    own = {f"client-{k}{end}" for k in range(N_CLIENTS - 1) for end in ("", ".safetensors")}
    paths = [path for path in clients.parent.rglob("*") if path.is_file()]
    return sum(
        p.stat().st_size for p in paths if not own & set(p.relative_to(clients.parent).parts)
    )


def measure(name: str, room: Path, runs: int, seconds: int, helper: Executor) -> Row:
    """Make a round, merge it so many times, and look at what is there.

    Args:
        name: of the case; any other is the honest round.
        helper: makes and reads files. The highest memory of a child counts its parent's before it
            became another program, so this process stays small.
    """
    folder = room / "round"
    clients, out = folder / "clients", folder / "out.safetensors"
    file = helper.submit(prepare, name, clients).result()
    options = [o.format(folder=folder) for o in CASES[name].options] if name in CASES else []
    done: list[Run] = []
    for _ in range(runs):
        done.append(run_clair(clients, out, options, seconds))
        if done[-1].code is None:
            break
    report = folder / "out.report.json"
    row = Row(
        name, done[-1].code, statistics.median(r.cpu for r in done), done[-1].peak,
        done[-1].words, file, out.stat().st_size if out.exists() else -1,
        report.stat().st_size if report.exists() else -1,
        helper.submit(verdict_of, report).result(),
        helper.submit(distance, out).result() if out.exists() else None,
    )  # fmt: skip
    shutil.rmtree(folder)
    return row


HEAD = (
    "| input | exit | CPU s | x honest | MB above honest | file MB | result x honest | report KB "
    "| stderr KB | verdict | distance |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
)


def line(row: Row, honest: Row) -> str:
    """One of the table's rows."""
    code = "stopped" if row.code is None else str(row.code)
    more = "> " if row.code is None else ""
    result = f"{row.result / honest.result:.2f}" if row.result >= 0 else "-"
    report = f"{row.report / 1000:,.0f}" if row.report >= 0 else "-"
    away = "-" if row.distance is None else f"{row.distance:.3g}"
    cells = [
        row.name, code, f"{more}{row.cpu:.2f}", f"{more}{row.cpu / honest.cpu:.1f}",
        f"{(row.peak - honest.peak) / MB:,.0f}", f"{row.file / MB:.2f}", result, report,
        f"{row.words / 1000:,.1f}", row.verdict, away,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def beyond(row: Row, honest: Row) -> list[str]:
    """The limits that one case breaks."""
    found = []
    if row.code is None or row.cpu > MAX_TIME * honest.cpu:
        found.append(f"{row.cpu / honest.cpu:.1f} x the honest time")
    if row.peak - honest.peak > MAX_MEMORY * row.file + MORE_MEMORY:
        found.append(f"{(row.peak - honest.peak) / MB:,.0f} MB for {row.file / MB:.2f} MB")
    if row.result > MAX_RESULT * honest.result:
        found.append(f"a result {row.result / honest.result:.1f} x the honest one")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=60, help="CPU time, then a run is stopped")
    parser.add_argument("--case", action="append", default=[], help="part of a name; repeatable")
    parser.add_argument("--limits", action="store_true", help="exit code 1 beyond a limit")
    given = parser.parse_args()
    compile_package()
    broken = []
    spawned = get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="clair-hostile-") as made,
        ProcessPoolExecutor(1, mp_context=spawned) as helper,
    ):
        room = Path(made)
        honest = measure("honest", room, max(3, given.runs), given.seconds, helper)
        print(f"{HEAD}\n{line(honest, honest)}", flush=True)
        for name, case in CASES.items():
            if given.case and not any(part in name for part in given.case):
                continue
            if shutil.disk_usage(room).free < case.needs:
                print(f"| {name} | not run: needs {case.needs / MB:,.0f} MB of disk |", flush=True)
                continue
            row = measure(name, room, given.runs, given.seconds, helper)
            print(line(row, honest), flush=True)
            broken += [f"{name}: {what}" for what in beyond(row, honest)]
    print(f"\nhonest round: {honest.peak / MB:,.0f} MB, {honest.result / MB:.2f} MB written; "
          f"{HOSTILE} has {honest.file / MB:.2f} MB")  # fmt: skip
    print("\n".join(["beyond the limits:", *broken]) if broken else "nothing beyond the limits")
    raise SystemExit(1 if broken and given.limits else 0)


if __name__ == "__main__":
    main()
