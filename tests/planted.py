"""Problems with a known answer: shared subspace, contaminated set, noise, all seeded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """One module of a planted cohort.

    Attributes:
        deltas: dense delta weights, (n_clients, out, in), float64.
        factors: per client (lora_A (rank, in), lora_B (out, rank), scaling).
        contaminated: indices of the bad clients.
        shared_subspace: orthonormal basis of the benign column space, (out, subspace_dim).
    """

    deltas: Tensor
    factors: list[tuple[Tensor, Tensor, float]]
    contaminated: frozenset[int]
    shared_subspace: Tensor


def orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator, dtype=torch.float64))[0]


def spectrum(rank: int, decaying: bool) -> Tensor:
    values = torch.tensor([1.0, 0.3, 0.1, 0.03] if decaying else [1.0] * 4, dtype=torch.float64)
    return torch.cat([values, values.new_full((max(0, rank - 4),), float(values[-1]))])[:rank]


def factor(delta: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Exact factors of a delta weight of that rank, in a random gauge, with scaling 2."""
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    gauge = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    gauge = gauge + 3.0 * torch.eye(rank, dtype=torch.float64)
    lora_B = left[:, :rank] * singular[:rank] / 2.0
    return torch.linalg.solve(gauge, right[:rank]), lora_B @ gauge, 2.0


def planted(
    n_clients: int = 20,
    n_bad: int = 4,
    *,
    out: int = 48,
    in_: int = 32,
    dim: int = 4,
    decaying: bool = False,
    noise: float = 0.0,
    outlier_norm: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Benign clients share a column space only; every outlier has its own.

    Args:
        dim: rank of every client, dimension of the shared subspace.
        decaying: outlier spectra (1, .3, .1, .03) instead of flat ones.
        noise: norm of the dense noise added to each client, over its signal's norm.
        outlier_norm: norm of an outlier over a benign client's.
    """
    g = torch.Generator().manual_seed(seed)
    shared = orthonormal(out, dim, g)
    bad = frozenset(range(n_clients - n_bad, n_clients))
    deltas = []
    for k in range(n_clients):
        if k in bad:
            delta = orthonormal(out, dim, g) * spectrum(dim, decaying) @ orthonormal(in_, dim, g).T
            delta = delta / delta.norm() * outlier_norm
        else:
            delta = shared @ torch.randn(dim, in_, generator=g, dtype=torch.float64)
            delta = delta / delta.norm()
        if noise:
            error = torch.randn(out, in_, generator=g, dtype=torch.float64)
            delta = delta + noise * error / error.norm()
        deltas.append(delta)
    rank = min(out, in_) if noise else dim
    return Planted(torch.stack(deltas), [factor(d, rank, g) for d in deltas], bad, shared)


def subspace_error(estimate: Tensor, truth: Tensor) -> float:
    """Sine of the largest principal angle between two column spaces of equal dimension."""
    outside = truth - estimate @ (estimate.T @ truth)
    return float(torch.linalg.matrix_norm(outside, ord=2))
