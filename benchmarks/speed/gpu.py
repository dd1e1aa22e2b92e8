"""`clair merge` on a CUDA device, beside the least that its work could take there.

    python -m benchmarks.speed.gpu                   64 clients, Llama-3-8B, rank 16
    python -m benchmarks.speed.gpu --clients 16 64 --model 1b --runs 5 --cpu

What Python takes to start, with torch and the device, is measured as a process of its own and
taken off. The floors: reading and hashing all files on all cores, sending them from page-locked
memory, and the float64 products of two Grams by halves at the rate that they reach here. Files
are made once and are in the page cache. The adapter is a new file every time. With --cpu the last
cohort is merged on the CPU as well, and the two reports compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT.parent))

from benchmarks.speed.cohorts import MODELS, client_rank, make_cohort  # noqa: E402
from benchmarks.speed.speed import cohort_parser, compile_package, cost  # noqa: E402

START = "import torch; torch.zeros(1, device='cuda')"
CHUNK = 2 * 2**20


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least of several, after one to warm up."""
    found = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    whole, buffer = hashlib.sha256(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            whole.update(memoryview(buffer)[:count])
    return whole.hexdigest()


def floors(cohort: Path, model: str, clients: int, ranks: str) -> dict[str, float]:
    """Seconds of each of the three."""
    files = sorted(cohort.glob("*/*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reading = seconds(lambda: list(pool.map(hash_file, files)))
    here = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(here, device="cuda", pin_memory=False)
    sending = seconds(lambda: there.copy_(here, non_blocking=True)) * size / len(here)
    n = sum(client_rank(k, ranks) for k in range(clients))
    rows = torch.randn(8, n, 4096, dtype=torch.float64, device="cuda")
    rate = 8 * 2 * n * n * 4096 / seconds(lambda: rows @ rows.mT)
    products = sum((out + in_) * n**2 for _, out, in_ in MODELS[model].modules())
    print(f"{size / 1e9:.2f} GB; {products / 1e12:.2f} TFLOP at {rate / 1e12:.1f} TFLOP/s")
    return {"reading and hashing": reading, "sending": sending, "Grams": products / rate}


def measure(cohort: Path, out: Path, runs: int) -> None:
    """Starting and merging in turn, one of each before; prints medians and what the stages took."""
    starts, merges, stages = [], [], []
    target = out / "clair.safetensors"
    for run in range(-1, runs):
        start = cost([sys.executable, "-c", START])
        for old in (target, target.with_suffix(".report.json")):
            old.unlink(missing_ok=True)
        merge = cost(
            [sys.executable, "-m", "clair_cli", "merge", str(cohort), "-o", str(target), "-q",
             "--fresh", "--timings", "--device", "cuda"]
        )  # fmt: skip
        if run >= 0:
            starts.append(start.wall)
            merges.append(merge.wall)
            stages.append(dict(re.findall(r"^  ([a-z ]+?) +([\d.]+) s", merge.words, re.M)))
    net = [wall - start for wall, start in zip(merges, starts, strict=True)]
    for name, found in (("start", starts), ("merge", merges), ("merge less start", net)):
        print(f"{name:20} {statistics.median(found):6.2f} s   ({min(found):.2f} to "
              f"{max(found):.2f})")  # fmt: skip
    print(f"stages, medians of {runs}: " + ", ".join(
        f"{name} {statistics.median(float(s.get(name, 0)) for s in stages):.2f}"
        for name in stages[-1]
    ))  # fmt: skip
    print(next(line.strip() for line in merge.words.splitlines() if "  memory:" in line))


def compare(cohort: Path, out: Path) -> None:
    """Merge on the CPU too; prints how long that takes and how far the two reports are apart."""
    target = out / "cpu.safetensors"
    merge = cost(
        [sys.executable, "-m", "clair_cli", "merge", str(cohort), "-o", str(target), "-q",
         "--fresh", "--force", "--device", "cpu"]
    )  # fmt: skip
    there, here = (json.loads((out / f"{n}.report.json").read_text()) for n in ("clair", "cpu"))
    pairs = list(zip(there["clients"], here["clients"], strict=True))
    same = "same" if all(a["verdict"] == b["verdict"] for a, b in pairs) else "NOT THE SAME"
    apart = max(abs(a["scores"]["loading"] - b["scores"]["loading"]) for a, b in pairs)
    print(f"on the CPU {merge.wall:.1f} s; verdicts {same}; loadings differ by {apart:.0e} at most")
    for name in ("norm", "error"):
        one, other = there["merged"][name], here["merged"][name]
        print(f"merged {name} {one:.4g}, differs by {abs(one / other - 1):.0e} of itself")


def main() -> None:
    """Command line."""
    parser = cohort_parser(__doc__, "8b", 64)
    parser.add_argument("--cpu", action="store_true", help="merge on the CPU too, and compare")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    out = given.folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    compile_package()
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for clients in given.clients:
        cohort = given.folder / f"{given.model}-k{clients}-r{given.ranks}-lall"
        make_cohort(cohort, given.model, clients, given.ranks)
        print(f"\n{clients} clients of {given.model}, rank {given.ranks}")
        found = floors(cohort, given.model, clients, given.ranks)
        print("floors: " + ", ".join(f"{name} {s:.2f} s" for name, s in found.items()))
        measure(cohort, out, given.runs)
    if given.cpu:
        compare(cohort, out)


if __name__ == "__main__":
    main()
