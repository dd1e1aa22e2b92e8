"""Stable recovery: subspace error against noise, and the set against its separation.

    python -m benchmarks.theory.stable_recovery --quick
    python -m benchmarks.theory.stable_recovery --json stable_recovery.json

Cohorts of six modules of 32 x 24; every client's D_k = signal + noise, cut to rank 4 as an
adapter is. `noise` is the norm of dense noise over the norm of the signal. Nobody is told how
many are bad, in which stacking they share, or how many dimensions.

1. Error. Clients share U (dim 2) with independent coefficients, 30 % have other subspaces. The
   stable program is solved on whole blocks (stable_blocks.py), with penalties from the group that
   `clair inspect` finds. The error is the sine of the largest principal angle between U and the
   refit on the set found, mean over modules, median over draws; 1 where the dimension is wrong or
   there is no group. `oracle` is told set and dimension; `exact`: the set is. First order (ours):
   error = noise sqrt(dim / K_b) (sqrt(out - dim) + sqrt(dim)) / sqrt(out in).
2. Set. separation = 1 - similarity of an outlier to honest clients / theirs to one another,
   before noise: 1 is unrelated, 0 is honest. `output`: the outlier's subspace is U turned by an
   angle, separation = sin^2; `matrix`: clients share D_0 itself, the outlier has part of it,
   separation = 1 - cos. Each outlier goes its own way, or all go the same (`colluding`). Exact:
   judged as `clair inspect` judges, all outliers contaminated, all others benign. A cell stops at
   its sixth failure.

The program is arXiv 2605.21217 as we read it; planted problems and definitions are ours.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.theory.stable_blocks import output_blocks, recover_stable
from clair_cli.maths.evidence.gather import gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.lowrank import Product, norm
from clair_cli.maths.factors.stack import stack_factors
from clair_cli.maths.judge.judge import Judgement, judge
from clair_cli.maths.refine.refine import shared_subspace

OUT, IN, N_MODULES, DIM, RANK = 32, 24, 6, 2, 4
BAD_SHARE = 0.3
NOISES = tuple(10 ** (i / 2) for i in range(-10, 1))
LINEAR_UP_TO = 0.1
SEPARATIONS = {
    "unrelated": (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0),
    "colluding": (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0),
}
SET_NOISES = (0.5, 1.0, 2.0)
WANTED, FAILURES = 0.95, 6


@dataclass(frozen=True)
class Cohort:
    """Planted clients, the last `n_bad` of them outliers.

    Attributes:
        modules: per module one Product per client.
        subspaces: the shared U of each module, (OUT, DIM).
        n_bad: number of outliers.
    """

    modules: list[list[Product]]
    subspaces: list[Tensor]
    n_bad: int

    @property
    def benign(self) -> tuple[int, ...]:
        return tuple(range(len(self.modules[0]) - self.n_bad))


def orthonormal(rows: int, columns: int, g: torch.Generator) -> Tensor:
    """Uniformly random orthonormal columns, (rows, columns)."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=g, dtype=torch.float64))[0]


def coefficients(g: torch.Generator) -> Tensor:
    """A client's own part of the signal, (DIM, IN)."""
    return torch.randn(DIM, IN, generator=g, dtype=torch.float64)


def adapter(signal: Tensor, noise: float, g: torch.Generator) -> Product:
    """Signal of norm one plus dense noise, as the nearest product of rank RANK."""
    dense = signal / signal.norm()
    error = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    left, values, right = torch.linalg.svd(dense + noise * error / error.norm())
    return Product(left[:, :RANK] * values[:RANK], right[:RANK])


def plant(
    n_clients: int, noise: float, separation: float = 1.0, *, stacking: str = "output",
    colluding: bool = False, seed: int = 0,
) -> Cohort:  # fmt: skip
    """A cohort of which BAD_SHARE are outliers at this separation (0 to 1)."""
    g = torch.Generator().manual_seed(seed)
    n_bad = round(BAD_SHARE * n_clients)
    cos = math.sqrt(1 - separation) if stacking == "output" else 1 - separation
    sin = math.sqrt(1 - cos * cos)
    modules, subspaces = [], []
    for _ in range(N_MODULES):
        shared, common, other = orthonormal(OUT, DIM, g), coefficients(g), coefficients(g)
        turned = off(shared, g)
        clients = []
        for k in range(n_clients):
            bad = k >= n_clients - n_bad
            if bad and not colluding:
                turned, other = off(shared, g), coefficients(g)
            if stacking == "output":
                signal = (cos * shared + sin * turned if bad else shared) @ coefficients(g)
            else:
                own = sin * turned @ (other / other.norm())
                signal = shared @ (common / common.norm())
                signal = cos * signal + own if bad else signal
            clients.append(adapter(signal, noise, g))
        modules.append(clients)
        subspaces.append(shared)
    return Cohort(modules, subspaces, n_bad)


def off(subspace: Tensor, g: torch.Generator) -> Tensor:
    """A random subspace of the same dimension, orthogonal to the given one."""
    other = orthonormal(OUT, DIM, g)
    return torch.linalg.qr(other - subspace @ (subspace.mT @ other))[0]


def judged(cohort: Cohort) -> Judgement:
    """Verdicts as the commands reach them."""
    factors = [[(p.lora_A, p.lora_B, 1.0) for p in clients] for clients in cohort.modules]
    evidence = gather(grams(stack_factors(factors, (OUT, IN))))
    names = [f"c{k:02}" for k in range(len(factors[0]))]
    modules = [f"m{m}" for m in range(len(factors))]
    return judge(evidence, names, modules)


def is_exact(cohort: Cohort, judgement: Judgement) -> bool:
    """Whether exactly the outliers are contaminated and everybody else is benign."""
    words = [v.verdict for v in judgement.verdicts]
    wanted = ["benign"] * len(cohort.benign) + ["contaminated"] * cohort.n_bad
    return judgement.outcome == "judged" and words == wanted


# 1. Error against noise


def refit_error(clients: Sequence[Product], dim: int, truth: Tensor) -> float:
    """Error of the subspace refitted on some clients; 1 for a wrong dimension."""
    if dim != truth.shape[1]:
        return 1.0
    basis = shared_subspace(clients, [1 / norm(p) for p in clients], "output", dim).U
    assert basis is not None
    return float(torch.linalg.matrix_norm(truth - basis @ (basis.mT @ truth), ord=2))


def subspace_errors(cohort: Cohort) -> tuple[float, float, bool]:
    """Mean error over modules: by the stable program, and told set and dimension; and whether the
    program's set is exact."""
    group = judged(cohort).structure.group
    shared = recover_stable(*output_blocks(cohort.modules), group) if group else None
    found, told = [], []
    for m, (clients, truth) in enumerate(zip(cohort.modules, cohort.subspaces, strict=True)):
        told.append(refit_error([clients[k] for k in cohort.benign], DIM, truth))
        dim = shared.penalties.subspace_dims[m] if shared else 0
        members = shared.members if shared else ()
        found.append(refit_error([clients[k] for k in members], dim, truth))
    exact = shared is not None and shared.members == cohort.benign
    return statistics.fmean(found), statistics.fmean(told), exact


def predicted_constant(n_benign: int) -> float:
    """Subspace error over noise, to first order (see the text above)."""
    spread = math.sqrt(OUT - DIM) + math.sqrt(DIM)
    return math.sqrt(DIM / n_benign) * spread / math.sqrt(OUT * IN)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope in log-log."""
    fit = statistics.linear_regression([math.log(a) for a in x], [math.log(b) for b in y])
    return fit.slope


def error_curve(n_clients: int, noises: Sequence[float], draws: int) -> dict[str, object]:
    """Part 1 for one cohort size, printed as it is made."""
    print(f"\nsubspace error: {n_clients} clients, {draws} draws")
    print(f"{'noise':>9} {'error':>10} {'oracle':>10} {'error/noise':>12} {'exact':>6}")
    errors, oracle, exact = [], [], []
    for noise in noises:
        found = [subspace_errors(plant(n_clients, noise, seed=s)) for s in range(draws)]
        errors.append(statistics.median(f[0] for f in found))
        oracle.append(statistics.median(f[1] for f in found))
        exact.append(sum(f[2] for f in found) / draws)
        ratio = errors[-1] / noise
        print(f"{noise:9.1e} {errors[-1]:10.2e} {oracle[-1]:10.2e} {ratio:12.4f} {exact[-1]:6.2f}")
    used = [i for i, noise in enumerate(noises) if noise <= LINEAR_UP_TO]
    steepness = slope([noises[i] for i in used], [errors[i] for i in used])
    constant = statistics.median(errors[i] / noises[i] for i in used)
    predicted = predicted_constant(n_clients - round(BAD_SHARE * n_clients))
    print(
        f"slope {steepness:.4f} up to noise {LINEAR_UP_TO:g}; "
        f"constant {constant:.4f}, predicted {predicted:.4f}",
        flush=True,
    )
    return {
        "n_clients": n_clients, "draws": draws, "noise": list(noises), "error": errors,
        "oracle": oracle, "exact": exact, "slope": steepness, "linear_up_to": LINEAR_UP_TO,
        "constant": constant, "predicted_constant": predicted,
    }  # fmt: skip


# 2. Set against separation


def exact_rate(
    n_clients: int, noise: float, separation: float, stacking: str, colluding: bool, draws: int
) -> float:
    """Share of the draws whose set is exact; over fewer draws once it can't reach 95 %."""
    done = hits = 0
    while done < draws and done - hits < FAILURES:
        cohort = plant(
            n_clients, noise, separation, stacking=stacking, colluding=colluding, seed=done
        )
        hits += is_exact(cohort, judged(cohort))
        done += 1
    return hits / done


def smallest(separations: Sequence[float], rates: Sequence[float]) -> float | None:
    """Smallest separation from which on every cell reaches WANTED."""
    reached = None
    for separation, rate in zip(reversed(separations), reversed(rates), strict=True):
        if rate < WANTED:
            break
        reached = separation
    return reached


def set_map(
    n_clients: int, noises: Sequence[float], separations: Sequence[float], stacking: str,
    colluding: bool, draws: int,
) -> dict[str, object]:  # fmt: skip
    """Part 2 for one kind of cohort, [noise][separation], printed as it is made."""
    kind = "colluding" if colluding else "unrelated"
    print(f"\nexact set: {n_clients} clients, {stacking}, {kind}, {draws} draws; by separation")
    print(f"{'noise':>6} " + " ".join(f"{s:5.2f}" for s in separations) + "  smallest at 95 %")
    rates, least = [], []
    for noise in noises:
        cells = [exact_rate(n_clients, noise, s, stacking, colluding, draws) for s in separations]
        rates.append(cells)
        least.append(smallest(separations, cells))
        reached = "none" if least[-1] is None else f"{least[-1]:.2f}"
        print(f"{noise:6.2f} " + " ".join(f"{c:5.2f}" for c in cells) + f"  {reached}", flush=True)
    return {
        "n_clients": n_clients, "stacking": stacking, "outliers": kind, "draws": draws,
        "axes": ["noise", "separation"], "noise": list(noises), "separation": list(separations),
        "exact": rates, "smallest_at_95_percent": least,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 clients, few draws and levels")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick = options.quick
    curves = [
        error_curve(n_clients, NOISES, 1 if quick else draws)
        for n_clients, draws in ({10: 1} if quick else {10: 20, 30: 5}).items()
    ]
    draws, noises = (20, (0.5,)) if quick else (100, SET_NOISES)
    maps = []
    for stacking in ("matrix", "output"):
        for kind, separations in SEPARATIONS.items():
            levels = (0.2, 0.4, 0.6, 0.8, 1.0) if quick else separations
            maps.append(set_map(10, noises, levels, stacking, kind == "colluding", draws))
        if not quick:
            levels = SEPARATIONS["unrelated"]
            maps.append(set_map(20, (1.0,), levels, stacking, False, draws))
    if options.json:
        numbers = {"curves": curves, "maps": maps}
        text = json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
