"""Whole-process time and memory of `clair merge` beside other ways to merge, on the same files.

    python -m benchmarks.speed.speed                       16 clients, Llama-3.2-1B, rank 16
    python -m benchmarks.speed.speed --clients 4 16 64 256 --methods clair mean --runs 3
    python -m benchmarks.speed.speed --growth              exponents in clients, rank and layers

Files are made once (in --folder, by speed_cohorts.py) and are in the page cache. Methods take
turns, run by run; what is printed are medians, and ratios of medians within this run of the
program: seconds of a shared machine mean little. The package's bytecode is made first, as pip does
when it installs. The floor is the time to read the files once plus
2 (out + in) (sum r)^2 / 2 operations per module at the rate that float32 products reach here.
"""

from __future__ import annotations

import argparse
import compileall
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT.parent))

from benchmarks.speed.cohorts import KINDS, MODELS, client_rank, make_cohort  # noqa: E402

PEERS = ROOT / "speed" / "peers.py"
MB = 1_000_000
# Commands of ours, and what they write.
OURS = {
    "clair": ("merge", "clair.safetensors"),
    "later": ("merge", "later.safetensors"),
    "inspect": ("inspect", ""),
    "refine": ("refine", "refined"),
}
PREVIOUS = "previous.safetensors"


@dataclass(frozen=True)
class Cost:
    """Of one whole process: wall-clock seconds, CPU seconds, peak resident bytes; and what it wrote
    to stderr."""

    wall: float
    cpu: float
    peak: int
    words: str = ""


def cost(arguments: Sequence[str]) -> Cost:
    """Run one process to its end.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {words[-500:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, words)


def command(method: str, cohort: Path, out: Path, threads: int | None) -> list[str]:
    """The process of one method."""
    if method == "import torch":
        return [sys.executable, "-c", "import torch"]
    if method not in OURS:
        return [sys.executable, str(PEERS), method, str(cohort), str(out / method)]
    name, written = OURS[method]
    given = ["-o", str(out / written), "--force", "-q"] if written else ["--fail-on", "never"]
    # no verdict: what the clients added to their own merge cancels out
    later = ["--allow-undetermined", "--previous", str(out / PREVIOUS)]
    given += later if method == "later" else ["--fresh"]
    given += ["--threads", str(threads)] if threads else []
    return [sys.executable, "-m", "clair_cli", name, str(cohort), *given]


def make_previous(cohort: Path, out: Path, rank: int) -> None:
    """What the clients are taken to have started from: their own merge, cut to a rank."""
    cost([*command("clair", cohort, out, None), "-o", str(out / PREVIOUS), "--rank", str(rank)])


def compile_package() -> None:
    """Make the bytecode that an installed package has; not everywhere may Python keep it."""
    compileall.compile_dir(ROOT.parent / "clair_cli", quiet=1)


def measure(
    methods: Sequence[str], cohort: Path, out: Path, runs: int, threads: int | None = None
) -> dict[str, list[Cost]]:
    """All methods in turn, `runs` times; one more of each before, to warm up."""
    found: dict[str, list[Cost]] = {method: [] for method in methods}
    for run in range(-1 if runs > 1 else 0, runs):
        for method in methods:
            one = cost(command(method, cohort, out, threads))
            if run >= 0:
                found[method].append(one)
    return found


def floor_seconds(cohort: Path, model: str, clients: int, ranks: str, layers: int | None) -> float:
    """Reading once, and the products of two Grams by halves at the float32 rate of this machine."""
    import torch

    start = time.perf_counter()
    for path in sorted(cohort.glob("*/*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(16 * 2**20):
                pass
    reading = time.perf_counter() - start
    a = torch.randn(1024, 4096)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        a @ a.T
        best = min(best, time.perf_counter() - start)
    rate = 2 * 1024 * 1024 * 4096 / best
    total = sum(client_rank(k, ranks) for k in range(clients))
    products = sum((out + in_) * total**2 for _, out, in_ in MODELS[model].modules(layers))
    print(f"floor: reading {reading:.2f} s, products {products / 1e9:,.0f} GFLOP at "
          f"{rate / 1e9:,.0f} GFLOP/s = {products / rate:.2f} s")  # fmt: skip
    return reading + products / rate


def median(costs: Sequence[Cost], what: str) -> float:
    return statistics.median(getattr(c, what) for c in costs)


def table(found: dict[str, list[Cost]], floor: float) -> None:
    """Medians, and the ratios that the goals are about."""
    base = median(found["import torch"], "peak") if "import torch" in found else 0
    ours = median(found["clair"], "wall") if "clair" in found else math.nan
    titles = ("wall s", "min", "max", "CPU s")
    print(f"{'':14}" + "".join(f"{t:>8}" for t in titles) + f"{'clair / it':>12}{'MB more':>10}")
    for method, costs in found.items():
        walls = [c.wall for c in costs]
        wall = statistics.median(walls)
        memory = (median(costs, "peak") - base) / MB
        print(f"{method:14}{wall:8.2f}{min(walls):8.2f}{max(walls):8.2f}{median(costs, 'cpu'):8.2f}"
              f"{ours / wall:12.3f}{memory:10,.0f}")  # fmt: skip
    if "import torch" in found and "clair" in found:
        bound = 1.5 * (median(found["import torch"], "wall") + floor) + 1.5
        print(f"1.5 x (import torch + floor {floor:.2f} s) + 1.5 s = {bound:.2f} s; clair takes "
              f"{ours / bound:.2f} of it")  # fmt: skip


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of log y over log x by least squares."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def growth(folder: Path, out: Path, runs: int, threads: int | None) -> None:
    """How CPU time above `import torch` grows with one quantity, the others fixed."""
    series: dict[str, list[tuple[int, int, str, int]]] = {
        "clients": [(k, k, "16", 1) for k in (16, 32, 64, 128, 256, 512)],
        "rank": [(r, 8, str(r), 2) for r in (4, 8, 16, 32, 64)],
        "layers": [(n, 16, "16", n) for n in (2, 4, 8, 16)],
    }
    torch_cpu = median(measure(["import torch"], folder, out, runs)["import torch"], "cpu")
    for name, points in series.items():
        xs, ys = [], []
        for x, clients, rank, layers in points:
            cohort = folder / f"1b-k{clients}-r{rank}-l{layers}"
            make_cohort(cohort, "1b", clients, rank, layers)
            found = measure(["clair"], cohort, out, runs, threads)["clair"]
            xs.append(x)
            ys.append(max(1e-3, median(found, "cpu") - torch_cpu))
            print(f"{name} {x:4}: {ys[-1]:7.2f} CPU s above import torch, "
                  f"{median(found, 'peak') / MB:6,.0f} MB", flush=True)  # fmt: skip
        print(f"growth in {name}: exponent {exponent(xs, ys):.2f} overall, "
              f"{exponent(xs[-2:], ys[-2:]):.2f} at the end", flush=True)  # fmt: skip


def cohort_parser(description: str | None, model: str, clients: int) -> argparse.ArgumentParser:
    """Options that say which cohorts are measured, and how often."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "speed")
    parser.add_argument("--model", choices=MODELS, default=model)
    parser.add_argument("--clients", type=int, nargs="+", default=[clients])
    parser.add_argument("--ranks", default="16", help="a number or mixed")
    parser.add_argument("--runs", type=int, default=5)
    return parser


def main() -> None:
    """Command line."""
    parser = cohort_parser(__doc__, "1b", 16)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kind", choices=KINDS, default="own", help="what the clients share")
    parser.add_argument("--methods", nargs="+", default=["import torch", "clair", "mean", "qr"])
    parser.add_argument(
        "--previous-rank", type=int, default=16, help="of the adapter that `later` subtracts"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--growth", action="store_true")
    given = parser.parse_args()
    out = given.folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    compile_package()
    if given.growth:
        growth(given.folder, out, given.runs, given.threads)
        return
    for clients in given.clients:
        name = f"{given.model}-k{clients}-r{given.ranks}-l{given.layers or 'all'}"
        name += "" if given.kind == "own" else f"-{given.kind}"
        size = make_cohort(
            given.folder / name, given.model, clients, given.ranks, given.layers, kind=given.kind
        )
        print(f"{clients} clients of {given.model}, rank {given.ranks}, {size / MB:,.0f} MB")
        if "later" in given.methods:
            make_previous(given.folder / name, out, given.previous_rank)
        floor = floor_seconds(given.folder / name, given.model, clients, given.ranks, given.layers)
        table(measure(given.methods, given.folder / name, out, given.runs, given.threads), floor)


if __name__ == "__main__":
    main()
