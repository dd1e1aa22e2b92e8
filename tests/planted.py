"""Problems with a known answer: shared subspace, contaminated set, noise, all seeded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import collected, gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import Factors, stack_factors
from clair_cli.maths.judge.judge import Judgement, judge

RANK = 8  # of every `aligned` client
# Large enough that chance similarities stay far below those planted.
WIDE = ((96, 64), (64, 96), (96, 64), (64, 96), (96, 64), (64, 96))


@dataclass(frozen=True)
class Planted:
    """One module of a planted cohort.

    Attributes:
        deltas: dense delta weights, (n_clients, out, in), float64.
        rank: of every client's factors.
        contaminated: indices of the bad clients.
        shared_subspace: orthonormal basis of the benign column space, (out, subspace_dim).
        generator: what random gauges are drawn from.
    """

    deltas: Tensor
    rank: int
    contaminated: frozenset[int]
    shared_subspace: Tensor
    generator: torch.Generator

    @functools.cached_property
    def factors(self) -> list[tuple[Tensor, Tensor, float]]:
        """Per client (lora_A (rank, in), lora_B (out, rank), scaling): an SVD each, so only where
        they are asked for."""
        return [factor(delta, self.rank, self.generator) for delta in self.deltas]


def orthonormal(rows: int, cols: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, cols, generator=generator, dtype=torch.float64))[0]


def spectrum(rank: int, decaying: bool) -> Tensor:
    values = torch.tensor([1.0, 0.3, 0.1, 0.03] if decaying else [1.0] * 4, dtype=torch.float64)
    return torch.cat([values, values.new_full((max(0, rank - 4),), float(values[-1]))])[:rank]


@functools.cache
def _vectors(size: int, count: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(size, count, generator=g, dtype=torch.float64)


def factor(delta: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Exact factors of a delta weight of that rank, in a random gauge, with scaling 2.

    Its products with `rank` random vectors span all of its columns, for less than an SVD takes.
    """
    columns = torch.linalg.qr(delta @ _vectors(delta.shape[1], rank))[0]
    gauge = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    gauge = gauge + 3.0 * torch.eye(rank, dtype=torch.float64)
    return torch.linalg.solve(gauge, columns.T @ delta), columns @ gauge / 2.0, 2.0


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
    return Planted(torch.stack(deltas), rank, bad, shared, g)


def subspace_error(estimate: Tensor, truth: Tensor) -> float:
    """Sine of the largest principal angle between two column spaces of equal dimension."""
    outside = truth - estimate @ (estimate.T @ truth)
    return float(torch.linalg.matrix_norm(outside, ord=2))


# (out, in) of the modules of a planted cohort: two batches of non-square modules, mixed.
SHAPES = ((48, 32), (32, 48), (48, 32), (32, 48), (48, 32), (32, 48))


def low_rank(out: int, in_: int, rank: int, generator: torch.Generator) -> Tensor:
    """A random delta weight of norm one with a decaying spectrum."""
    left, right = orthonormal(out, rank, generator), orthonormal(in_, rank, generator)
    delta = left * spectrum(rank, decaying=True) @ right.T
    return delta / delta.norm()


def aligned(
    cosines: Sequence[float],
    groups: Sequence[int] | None = None,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rank: int = 4,
    seed: int = 0,
) -> list[Tensor]:
    """Clients as trained adapters behave: D_k = a_k D_0 + noise_k, of norm one.

    Args:
        cosines: a_k^2 per client, the cosine with an equal one of its group; 0 is unrelated.
        groups: which D_0 each client has a share of; all the same one by default.
        rank: of D_0 and of every noise_k; a client has twice as much.

    Returns:
        Per module (n_clients, out, in), float64.
    """
    g = torch.Generator().manual_seed(seed)
    groups = [0] * len(cosines) if groups is None else groups
    deltas = []
    for out, in_ in shapes:
        common = {i: low_rank(out, in_, rank, g) for i in sorted(set(groups))}
        deltas.append(
            torch.stack([
                c**0.5 * common[i] + (1 - c) ** 0.5 * low_rank(out, in_, rank, g)
                for c, i in zip(cosines, groups, strict=True)
            ])
        )  # fmt: skip
    return deltas


def factor_all(deltas: Sequence[Tensor], rank: int, seed: int = 0) -> list[list[Factors]]:
    """Factors of every client in every module, each in its own random gauge."""
    g = torch.Generator().manual_seed(seed + 10_000)
    return [[factor(delta, rank, g) for delta in module] for module in deltas]


def judge_factors(
    modules: Sequence[Sequence[Factors]],
    shapes: Sequence[tuple[int, int]],
    names: Sequence[str] | None = None,
) -> Judgement:
    """Factors to verdicts, in batches of one shape, as a caller of the maths would do it."""
    names = [f"c{k}" for k in range(len(modules[0]))] if names is None else names
    by_shape: dict[tuple[int, int], list[int]] = {}
    for m, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(m)
    parts = [
        (ms, gather(grams(stack_factors([modules[m] for m in ms], shape))))
        for shape, ms in by_shape.items()
    ]
    evidence = collected(parts, len(modules))
    return judge(evidence, names, [f"m{m}" for m in range(len(modules))])


def judge_deltas(deltas: Sequence[Tensor], rank: int, seed: int = 0) -> Judgement:
    """Dense planted deltas to verdicts; see `judge_factors`."""
    shapes = [(module.shape[1], module.shape[2]) for module in deltas]
    return judge_factors(factor_all(deltas, rank, seed), shapes)


def words(judgement: Judgement) -> list[str]:
    """Every client's verdict."""
    return [verdict.verdict for verdict in judgement.verdicts]


def codes(judgement: Judgement, client: int) -> set[str]:
    """Codes of one client's reasons."""
    return {finding.code for finding in judgement.verdicts[client].findings}


def judged(deltas: Sequence[Tensor], rank: int = RANK, seed: int = 0) -> Judgement:
    result = judge_deltas(deltas, rank, seed)
    assert result.outcome == "judged", result.text
    return result


def verdicts_of(result: Judgement, bad: set[int]) -> None:
    """Every bad client contaminated, nobody else even suspicious."""
    expected = ["contaminated" if k in bad else "benign" for k in range(len(result.verdicts))]
    assert words(result) == expected
    assert result.members == tuple(k for k in range(len(expected)) if k not in bad)


def paper_model(
    n_clients: int, n_bad: int, n_modules: int, *, seed: int = 0, **kwargs: float
) -> list[Tensor]:
    problems = [
        planted(n_clients, n_bad, seed=1000 * seed + m, out=64, in_=48, **kwargs)  # type: ignore[arg-type]
        for m in range(n_modules)
    ]
    return [p.deltas for p in problems]
