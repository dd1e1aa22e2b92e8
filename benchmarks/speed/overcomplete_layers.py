"""How far the comparison of over-complete stacks is from one by whole Grams, on a speed cohort.

    python -m benchmarks.speed.overcomplete_layers benchmarks/.cache/speed/1b-k256-r16-l1

Where a stack has more rank-one components than the layer has rows or columns, `clair` compares
the clients in the leading directions of each side. For every module this prints the time of both
ways on one thread, and the difference of the pairs' similarities.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.find import find_clients
from clair_cli.cohort.load import load_client
from clair_cli.maths.evidence.gather import gather
from clair_cli.maths.evidence.overcomplete import overcomplete_evidence
from clair_cli.maths.evidence.similarity import STACKINGS
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import stack_factors


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--modules", type=int, default=7, help="the first so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    read = map(load_client, find_clients(given.cohort).candidates)
    adapters = [adapter for adapter in read if isinstance(adapter, Adapter)]
    apart = ~torch.eye(len(adapters), dtype=torch.bool)
    print(f"{len(adapters)} clients; differences of similarities: largest, mean, root mean square")
    print(f"{'module':32}{'out x in':>14}{'wide s':>8}{'Grams s':>8}"
          + "".join(f"{name:>26}" for name in STACKINGS))  # fmt: skip
    for module in list(adapters[0].modules)[: given.modules]:
        factors = [(*a.factors(module), a.modules[module].scaling) for a in adapters]
        shape = adapters[0].modules[module].shape
        stack = stack_factors([factors], shape)
        start = time.perf_counter()
        found = overcomplete_evidence(stack).evidence
        middle = time.perf_counter()
        exact = gather(grams(stack))
        end = time.perf_counter()
        line = (
            f"{module[-31:]:32}{shape[0]:>7}x{shape[1]:<6}{middle - start:8.2f}{end - middle:8.2f}"
        )
        for name in STACKINGS:
            off = (found.table(name).value - exact.table(name).value)[0][apart]
            rms = float(off.square().mean().sqrt())
            line += f"{float(off.abs().max()):10.4f}{float(off.mean()):8.4f}{rms:8.4f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
