"""How long the judge takes, and how that grows: on random evidence, on one core.

python -m benchmarks.scale.judging
"""

from __future__ import annotations

import functools
import math
import statistics
import time

import torch

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge.judge import judge

# (clients, modules) that are measured: the exponents come from these.
POINTS = ((48, 32), (96, 32), (192, 32), (96, 64), (96, 128))
_COORDINATES = 200


def evidence(clients: int, modules: int, seed: int = 1) -> Evidence:
    """Of clients that share a direction, but for one in five."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(_COORDINATES, generator=g, dtype=torch.float64)
    honest = (torch.arange(clients) % 5 != 4).double()[:, None]
    shape = (modules, clients, _COORDINATES)
    own = torch.nn.functional.normalize(torch.randn(shape, generator=g, dtype=torch.float64), dim=2)
    deltas = torch.nn.functional.normalize(own + honest * common / common.norm(), dim=2)
    cosines = deltas @ deltas.mT
    sides = PairTable(cosines.square(), torch.full_like(cosines, 1.0 / _COORDINATES))
    ones = torch.ones(modules, clients, dtype=torch.float64)
    return Evidence(ones, PairTable(cosines, torch.zeros_like(cosines)), sides, sides, 8 * ones)


def measured(clients: int, modules: int) -> float:
    """Seconds of one judgement."""
    given = evidence(clients, modules)
    names = [f"c{k}" for k in range(clients)]
    start = time.process_time()
    judge(given, names, [f"m{m}" for m in range(modules)])
    return time.process_time() - start


@functools.cache
def fit() -> tuple[float, float, float]:
    """Seconds for one client and one module, and the exponents in clients and in modules."""
    measured(*POINTS[0])  # to warm up
    found = {point: measured(*point) for point in POINTS}

    def exponent(points: list[tuple[int, int]], axis: int) -> float:
        logs = [(math.log(point[axis]), math.log(found[point])) for point in points]
        return statistics.linear_regression(*zip(*logs, strict=True)).slope

    of_clients = exponent([p for p in POINTS if p[1] == 32], 0)
    of_modules = exponent([p for p in POINTS if p[0] == 96], 1)
    ones = [s / (k**of_clients * m**of_modules) for (k, m), s in found.items()]
    return statistics.median(ones), of_clients, of_modules


def judging_seconds(clients: int, modules: int) -> float:
    """As the measured points predict it."""
    one, of_clients, of_modules = fit()
    return one * clients**of_clients * modules**of_modules


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("judging grows with clients^{1:.2f} and modules^{2:.2f}".format(*fit()))
