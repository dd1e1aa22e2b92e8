"""Exact recovery without noise: where subspace and set are found, beside where theory says so.

    python -m benchmarks.theory.exact_recovery --quick
    python -m benchmarks.theory.exact_recovery --json exact_recovery.json

One module of 48 x 32, K clients of rank r. Benign ones share an output subspace of dimension r
and nothing else: D_k = U C_k with independent C_k. Outliers are `unrelated` (each has a subspace
of its own) or `colluding` (all in one other subspace), with a spectrum that is flat or decaying
(1, .3, .1, .03, .03 ...). Success: the set is exact and the sine of the largest principal angle
to the true U is at most 1e-6. Nobody tells the solver r or the number of benign clients K_b;
see recovery.py for the rule.

Predicted window (lam between sqrt(r / K_b) and an upper end that the outliers set):

    unrelated   the upper end is about 1:          there is a window while r < K_b
    colluding   the upper end is sqrt(r / K_o):    while K_o < K_b, for K_o colluders

"About 1" is cautious for outliers of a large rank and a flat spectrum: a block of norm one then
has singular values 1 / sqrt(r), and the upper end lies above 1.

Cells are success rates over the draws. `predicted` is the contaminated fraction at which the
window closes (0.80: any smaller one is inside), `measured` the last one up to which every draw
succeeds. The program is arXiv 2605.21217 as we read it; the map is ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.theory import recovery

OUT, IN = 48, 32
FRACTIONS = tuple(i / 10 for i in range(9))
DIMS = (1, 2, 4, 8, 16)
KINDS = ("unrelated", "colluding")
SPECTRA = ("flat", "decaying")
NORMS = (0.1, 1.0, 10.0, 100.0)
NORM_FRACTIONS = {"unrelated": 0.6, "colluding": 0.4}
FIXED_LAMS = (0.6, 0.8)
TOLERANCE = 1e-6
Method = Callable[[Tensor, Sequence[int]], tuple[tuple[int, ...], Tensor]]


@dataclass(frozen=True)
class Problem:
    """One planted module.

    Attributes:
        stack: D_k V_k side by side, V_k an orthonormal basis of D_k's rows, (OUT, K r).
        ranks: columns of each block.
        subspace: the shared U, (OUT, r).
        benign: clients 0 to K_b - 1.
    """

    stack: Tensor
    ranks: list[int]
    subspace: Tensor
    benign: tuple[int, ...]


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Uniformly random orthonormal columns, (rows, columns)."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def spectrum(name: str, dim: int) -> Tensor:
    """Singular values of an outlier, (dim,)."""
    values = [1.0] * dim if name == "flat" else [1.0, 0.3, 0.1] + [0.03] * dim
    return torch.tensor(values[:dim], dtype=torch.float64)


def plant(
    n_clients: int, n_bad: int, dim: int, kind: str, shape: str, norm: float = 1.0, seed: int = 0
) -> Problem:
    """Clients of which the last `n_bad` are outliers of `norm` times a benign client's size."""
    g = torch.Generator().manual_seed(seed)
    shared, other = orthonormal(OUT, dim, g), orthonormal(OUT, dim, g)
    blocks = []
    for k in range(n_clients):
        if k < n_clients - n_bad:
            rows = torch.randn(dim, IN, generator=g, dtype=torch.float64)
            block, size = shared @ torch.linalg.qr(rows.mT)[1].mT, 1.0
        elif kind == "unrelated":
            block, size = orthonormal(OUT, dim, g) * spectrum(shape, dim), norm
        else:
            block, size = other @ orthonormal(dim, dim, g) * spectrum(shape, dim), norm
        blocks.append(size * block / block.norm())
    benign = tuple(range(n_clients - n_bad))
    return Problem(torch.cat(blocks, dim=1), [dim] * n_clients, shared, benign)


def by_path(stack: Tensor, ranks: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
    """The rule of recovery.py."""
    found = recovery.recover(stack, ranks)
    return found.kept, found.basis


def by_fixed(lam: float) -> Method:
    """One solve at a given lam, refitted as the rule would."""

    def solve(stack: Tensor, ranks: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
        return recovery.solve_at(recovery.unit_blocks(stack, ranks), ranks, lam)

    return solve


def subspace_error(estimate: Tensor, truth: Tensor) -> float:
    """Sine of the largest principal angle; 1 where the dimensions differ."""
    if estimate.shape != truth.shape:
        return 1.0
    outside = truth - estimate @ (estimate.mT @ truth)
    return float(torch.linalg.matrix_norm(outside, ord=2))


def succeeds(problem: Problem, method: Method = by_path) -> bool:
    """Exact set and exact subspace."""
    kept, basis = method(problem.stack, problem.ranks)
    return kept == problem.benign and subspace_error(basis, problem.subspace) <= TOLERANCE


def success_map(
    n_clients: int, dims: Sequence[int], fractions: Sequence[float], kind: str, shape: str,
    draws: int, method: Method = by_path,
) -> list[list[float]]:  # fmt: skip
    """Success rates, one row per subspace dimension and one column per contaminated fraction."""
    return [
        [
            sum(
                succeeds(plant(n_clients, round(f * n_clients), dim, kind, shape, seed=s), method)
                for s in range(draws)
            )
            / draws
            for f in fractions
        ]
        for dim in dims
    ]


def closes_at(n_clients: int, dim: int, kind: str) -> float:
    """Contaminated fraction at which the predicted window closes."""
    return max(0.0, 1.0 - dim / n_clients) if kind == "unrelated" else 0.5


def last_success(fractions: Sequence[float], rates: Sequence[float]) -> float | None:
    """Largest fraction up to which every draw of every fraction succeeds."""
    reached = None
    for fraction, rate in zip(fractions, rates, strict=True):
        if rate < 1.0:
            break
        reached = fraction
    return reached


def map_entry(
    n_clients: int, dims: Sequence[int], fractions: Sequence[float], kind: str, shape: str,
    rates: list[list[float]], draws: int, rule: str,
) -> dict[str, object]:  # fmt: skip
    """One map for the JSON file; arrays are [subspace_dim][fraction]."""
    return {
        "n_clients": n_clients,
        "outliers": kind,
        "spectrum": shape,
        "rule": rule,
        "draws": draws,
        "axes": ["subspace_dim", "fraction"],
        "subspace_dim": list(dims),
        "fraction": list(fractions),
        "success": rates,
        "dim_over_benign": [
            [d / (n_clients - round(f * n_clients)) for f in fractions] for d in dims
        ],
        "predicted_boundary": [closes_at(n_clients, d, kind) for d in dims],
        "measured_boundary": [last_success(fractions, row) for row in rates],
    }


def print_map(entry: dict[str, object]) -> None:
    """One block of the table."""
    fractions, boundary = entry["fraction"], entry["predicted_boundary"]
    cells = " ".join(f"{f:5.2f}" for f in fractions)  # type: ignore[attr-defined]
    title = (
        f"{entry['rule']}: {entry['n_clients']} clients, {entry['outliers']}, {entry['spectrum']}"
    )
    print(f"\n{title}, {entry['draws']} draws\n{'r':>4}  {cells}  predicted measured")
    rows = zip(
        entry["subspace_dim"], entry["success"], boundary, entry["measured_boundary"], strict=True
    )  # type: ignore[call-overload]  # fmt: skip
    for dim, rates, predicted, measured in rows:
        cells = " ".join(f"{rate:5.2f}" for rate in rates)
        reached = "-" if measured is None else f"{measured:.2f}"
        print(f"{dim:>4}  {cells}  {predicted:9.2f} {reached:>8}", flush=True)


def norm_table(n_clients: int, dim: int, draws: int) -> dict[str, object]:
    """Success over the outliers' norm, [outliers and spectrum][norm]; printed as it is made."""
    print(f"\noutlier norm: {n_clients} clients, r = {dim}, {draws} draws; success rates")
    print(f"{'outliers':30}" + "".join(f"{f'{norm:g}x':>7}" for norm in NORMS))
    names, rows = [], []
    for kind in KINDS:
        bad = round(NORM_FRACTIONS[kind] * n_clients)
        for shape in SPECTRA:
            rates = [
                sum(succeeds(plant(n_clients, bad, dim, kind, shape, n, s)) for s in range(draws))
                / draws
                for n in NORMS
            ]
            names.append(f"{kind}, {shape}, {NORM_FRACTIONS[kind]:.0%}")
            rows.append(rates)
            print(f"{names[-1]:30}" + "".join(f"{rate:7.2f}" for rate in rates), flush=True)
    return {"axes": ["outliers", "norm"], "outliers": names, "norm": list(NORMS), "success": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 clients, a coarse map, one draw")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {20: 1} if options.quick else {20: 4, 40: 2}
    dims = (1, 4, 8) if options.quick else DIMS
    fractions = (0.0, 0.2, 0.4, 0.6, 0.8) if options.quick else FRACTIONS
    maps = []
    for n_clients, draws in sizes.items():
        plan: list[tuple[str, Method, str, str]] = [
            ("path", by_path, kind, shape) for kind in KINDS for shape in SPECTRA
        ]
        if n_clients == 20:
            plan += [(f"lam = {x}", by_fixed(x), "unrelated", "flat") for x in FIXED_LAMS]
        for rule, method, kind, shape in plan:
            rates = success_map(n_clients, dims, fractions, kind, shape, draws, method)
            maps.append(map_entry(n_clients, dims, fractions, kind, shape, rates, draws, rule))
            print_map(maps[-1])
    norms = norm_table(20, 4, 2 if options.quick else 5)
    if options.json:
        text = json.dumps({"maps": maps, "norms": norms}, indent=1, sort_keys=True, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
