"""How long the judge takes, and how that grows: on random evidence, on one core.

python -m benchmarks.scale.judging
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.judge.judge import judge

# (clients, modules) that are measured.
POINTS = ((100, 60), (200, 60), (400, 60), (100, 240), (100, 480))
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


def terms(clients: int, modules: int) -> list[float]:
    """What the seconds are made of: something fixed, all pairs in all modules, and decompositions
    of tables of all pairs."""
    return [1.0, clients**2 * modules, clients**3]


@functools.cache
def fit() -> tuple[float, ...]:
    """Seconds for each of the terms, at least 0, by least squares of relative errors."""
    from scipy.optimize import nnls

    measured(*POINTS[0])  # to warm up
    seconds = np.array([measured(*point) for point in POINTS])
    found, _ = nnls(np.array([terms(*point) for point in POINTS]) / seconds[:, None],
                    np.ones(len(POINTS)))  # fmt: skip
    return tuple(found.tolist())


def judging_seconds(clients: int, modules: int) -> float:
    """As the measured points predict it."""
    return sum(c * t for c, t in zip(fit(), terms(clients, modules), strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("judging takes {:.2g} s + {:.2g} s x modules x clients^2 + {:.2g} s x clients^3"
          .format(*fit()))  # fmt: skip
