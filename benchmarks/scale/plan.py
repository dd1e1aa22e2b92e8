"""What a merge by a Ray cluster will take: bytes read, products, memory of driver, task and stores.

    python -m benchmarks.scale.plan                         16 to 1000 clients of 1B, 8B and 70B
    python -m benchmarks.scale.plan --clients 1000 --models 70b --stores 400

Nothing is read or multiplied but to measure this machine's rates: batches, what is kept and memory
are what the package itself plans for such clients. Hours are those of one CPU as this one, for all
tasks together; divide them by the cluster's CPUs. The driver judges alone, on one CPU. A process
takes what Python, torch and Ray take (`base`), and its own; what passes leave to each other lies in
the machines' object stores, which all processes of a machine share. `check.py` compares this with
runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.scale.judging import judging_seconds
from benchmarks.speed.cohorts import MODELS, Model
from benchmarks.speed.speed import exponent
from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.config import parse_config
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.shared_tables import SharedTables
from clair_cli.cohort.round import Round
from clair_cli.engine.cluster import STORES_SHARE
from clair_cli.engine.device import Device
from clair_cli.engine.ray_tasks import described
from clair_cli.formats.safetensors.reader import SafetensorsFile
from clair_cli.formats.safetensors.source import TensorEntry
from clair_cli.maths.evidence.overcomplete import COMPARED_DIM
from clair_cli.maths.merge.mean import SERVING_RANKS
from clair_cli.workflow import memory_estimate
from clair_cli.workflow.available_memory import available_memory
from clair_cli.workflow.batches import KEPT_BETWEEN_PASSES, batches, kept_grams, overcomplete

SHAPES = {**MODELS, "70b": Model(layers=80, hidden=8192, inner=28672, keys=1024)}
RANKS = {"small": 4, "1b": 16, "8b": 16, "70b": 64}
CLIENTS = (16, 64, 256, 1000)
OUTPUT_RANK = 64  # that the merge is taken to be cut to
# Products with all components that the evidence of an over-complete stack takes, by each side's
# width: three of the subspace iteration, back and forth, and random projections.
_SUBSPACE = 2 * 3 * COMPARED_DIM + 2 * 48
_WAITING = 4  # results on their way to the driver; two for each CPU of a cluster of two
# Bytes that the driver takes to unpack results, however few clients there are: check.py found 34 MB
# more than the rest of the plan with 16 clients.
_UNPACKING = 40 * 10**6
_EIGENVALUES = 9  # products of n x n matrices that an eigendecomposition costs


@dataclass(frozen=True)
class Plan:
    """Of one round.

    Attributes:
        stored: bytes of all clients' tensors.
        read: bytes that tasks read, the check included.
        products: multiplications and additions of all tasks.
        sent: bytes of the described round.
        driver: bytes of memory beside torch, an upper estimate.
        scratch: bytes of tables that are files.
        task: bytes of memory of the largest task beside torch, the round included.
        store: bytes in the object stores of all machines together, an upper estimate.
        tasks: number of them.
    """

    clients: int
    modules: int
    stored: int
    read: int
    products: float
    sent: int
    driver: int
    scratch: int
    task: int
    store: int
    tasks: int


def a_round(model: str, clients: int, rank: int) -> Round:
    """Of clients with all of a model's layers in bf16; no file is there."""
    shapes = {name: (out, in_) for name, out, in_ in SHAPES[model].modules()}
    modules, places, at = {}, list[tuple[str, tuple[int, int], int]](), 0
    for name, (out, in_) in sorted(shapes.items()):
        keys = [f"base_model.model.{name}.lora_{side}.weight" for side in "AB"]
        for key, shape in zip(keys, ((rank, in_), (out, rank)), strict=True):
            places.append((key, shape, at))
            at += 2 * shape[0] * shape[1]
        layout = Layout("linear", (out, in_))
        modules[name] = LoraModule(name, name, *keys, layout, rank, 2.0 * rank, 2.0, "bfloat16")
    config = parse_config({"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"})
    tables, adapters = SharedTables(), list[Adapter]()
    for k in range(clients):
        entries = {
            key: TensorEntry(key, "BF16", shape, begin, begin + 2 * shape[0] * shape[1],
                             hashlib.sha256(f"{k} {key}".encode()).digest()[:16], exponent=1)
            for key, shape, begin in places
        }  # fmt: skip
        path = Path(f"/shared/clients/client-{k:04}/adapter_model.safetensors")
        source = SafetensorsFile(f"{k:064x}", {}, entries, 8, at + 8, (0, k, 0, 0), path=path)
        name = f"client-{k:04}"
        adapters.append(
            tables.shared(Adapter(name, str(path), source.sha256, config, "", modules, source))
        )
    return Round(tuple(adapters), (), dict(sorted(shapes.items())), None, None, None, None, ())


def left_between(n: int, shape: tuple[int, int], room: int, grams: int) -> tuple[int, list[int]]:
    """What the first look at a module leaves for the second: bytes in the object stores, and the
    ranks that it cuts at once. See `workflow.merge_modules`.

    Args:
        n: components of all clients. room: bytes that this module may take.
        grams: bytes of its Grams, that were kept; 0 if they were not.
    """
    most = min(n, *shape)
    if grams:
        fitting = (k for k in (most, 128) if 16 * n * k <= room)
        return 16 * n * next(fitting, 0), []
    ranks, used = list[int](), 0
    for rank in dict.fromkeys(min(rank, most) for rank in SERVING_RANKS):
        size = 2 * rank * sum(shape)
        if used + size > room:
            break
        used += size
        ranks.append(rank)
    return used, ranks


def plan(model: str, clients: int, rank: int, stores: int) -> Plan:
    """What the package will do for such a round.

    Args:
        stores: bytes of the object stores of all machines.
    """
    round_, device = a_round(model, clients, rank), Device("cpu", torch.float64)
    n, kept = rank * clients, kept_grams(round_)
    room = max(int(STORES_SHARE * stores), KEPT_BETWEEN_PASSES) // len(round_.module_shapes)
    stored = read = 0
    store, left_at_most = sum(kept.values()), 0
    products = 0.0
    for module, (out, in_) in round_.module_shapes.items():
        size, widths, width = 2 * n * (out + in_), out + in_, min(out, in_)
        left, ranks = left_between(n, (out, in_), room, kept.get(module, 0))
        written = min(OUTPUT_RANK, width, n)
        enough = module in kept or written <= max(ranks, default=0)
        passes = 3 if enough else 4  # the check, comparing, merging, (cutting)
        store += left
        left_at_most = max(left_at_most, left)
        if overcomplete(round_, module):
            work = n * widths * _SUBSPACE + n * out * in_ + max(out, in_) * width**2
            work += _EIGENVALUES * width**3
        else:
            grams = n * n * widths / 2
            work = grams * (1 if module in kept else 2) + (4 + _EIGENVALUES) * n**3
        work += n * widths * (sum(ranks) + (0 if ranks and enough else written))
        stored, read, products = stored + size, read + passes * size, products + 2.0 * work
    parts, sent = batches(round_, device), len(pickle.dumps(described(round_)))
    here = SimpleNamespace(device=device, threads=0)
    driver = memory_estimate.work_memory(round_, here)  # type: ignore[arg-type]
    # two modules a result, some of which wait to be taken, and once more as they are unpacked
    widest = max(sum(shape) for shape in round_.module_shapes.values())
    driver += _UNPACKING + 2 * _WAITING * 2 * 2 * OUTPUT_RANK * widest
    table = 8 * clients**2 * len(round_.module_shapes)
    largest = max(memory_estimate._in_work(round_, batch) for batch in parts)
    return Plan(
        clients, len(round_.module_shapes), stored, read, products, sent,
        driver - 2 * sum(kept.values()) + 3 * sent,
        9 * table if table >= memory_estimate.LARGE else 0,
        largest + 2 * left_at_most + 3 * sent, store, clients + 3 * len(parts),
    )  # fmt: skip


def usual_stores() -> int:
    """Bytes that Ray sets aside for objects on this machine, if nobody says otherwise."""
    return int(0.3 * (available_memory() or 2**34))


@dataclass(frozen=True)
class Rates:
    """Of one core of this machine: bytes read and hashed a second, operations in float64."""

    reading: float
    products: float


def measured_rates() -> Rates:
    """Medians of a few seconds' work on one thread, in CPU time: others may use this machine."""
    torch.set_num_threads(1)
    data = bytes(2**25)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        reading = []
        for _ in range(5):
            start = time.process_time()
            hashlib.sha256(Path(file.name).read_bytes()).digest()
            reading.append(time.process_time() - start)
    tall = torch.randn(4096, 512, dtype=torch.float64)
    products = []
    for _ in range(5):
        start = time.process_time()
        tall.mT @ tall
        products.append(time.process_time() - start)
    return Rates(
        len(data) / statistics.median(reading), 2 * 4096 * 512**2 / statistics.median(products)
    )


def measured_base() -> int:
    """Bytes of memory of a process that has imported what a task needs, shared libraries too."""
    code = (
        "import importlib.util as u\n"
        "import clair_cli.workflow.run, clair_cli.engine.ray_tasks, scipy.linalg\n"
        "u.find_spec('ray') and __import__('ray')\n"
        "print(open('/proc/self/statm').read().split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--models", choices=SHAPES, nargs="+", default=["1b", "8b", "70b"])
    parser.add_argument("--rank", type=int, help="of all clients; default 16, and 64 of the 70B")
    parser.add_argument("--stores", type=float, help="GB of all machines' object stores; default:"
                        " what Ray takes of this machine")  # fmt: skip
    given = parser.parse_args(arguments)
    rates, stores = measured_rates(), int((given.stores or 0) * 1e9) or usual_stores()
    print(f"one core reads and hashes {rates.reading / 1e6:,.0f} MB/s, and makes products in "
          f"float64 at {rates.products / 1e9:,.1f} GFLOP/s; object stores of {stores / 1e9:,.1f} "
          f"GB; a process takes {measured_base() / 1e6:,.0f} MB by itself")  # fmt: skip
    columns = ("clients", "modules", "stored", "read", "TFLOP", "CPU h", "judge s", "tasks", "sent",
               "driver", "files", "a task", "store")  # fmt: skip
    print(f"{'':8}" + "".join(f"{name:>9}" for name in columns))
    plans: dict[str, list[Plan]] = {model: [] for model in given.models}
    for model in given.models:
        for clients in given.clients:
            rank = given.rank or RANKS[model]
            found = plan(model, clients, rank, stores)
            plans[model].append(found)
            hours = (found.read / rates.reading + found.products / rates.products) / 3600
            judge = judging_seconds(clients, found.modules)
            print(f"{model + ' r' + str(rank):8}{clients:9,}{found.modules:9,}"
                  f"{found.stored / 1e9:9,.1f}{found.read / 1e9:9,.1f}{found.products / 1e12:9,.1f}"
                  f"{hours:9,.2f}{judge:9,.1f}{found.tasks:9,}{found.sent / 1e6:9,.1f}"
                  f"{found.driver / 1e6:9,.0f}{found.scratch / 1e9:9,.1f}{found.task / 1e6:9,.0f}"
                  f"{found.store / 1e9:9,.1f}",
                  flush=True)  # fmt: skip
    print(
        "stored, read, files and store in GB; sent, and memory of driver and task beside what a "
        "process takes by itself, in MB"
    )
    for model, each in plans.items():
        if len(each) > 1:
            read, products = (
                exponent([p.clients for p in each], [getattr(p, name) for p in each])
                for name in ("read", "products")
            )
            print(f"{model}: read clients^{read:.2f}, products clients^{products:.2f}")


if __name__ == "__main__":
    main()
