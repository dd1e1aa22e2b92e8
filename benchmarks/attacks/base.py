"""What all attacks are made of: parts of a cohort, random matrices, factors of a delta weight.

An attack takes the delta weights of all clean clients, module to (K, out, in) float64, and the
number of bad clients. The *last* ``bad`` clients are the attackers: what they would have sent is
their "own" update, and the first K - bad clients are the honest ones, all of which they know. It
returns the attackers' delta weights, module to (bad, out, in).

"Norm-matched" means: in every module, the median norm of the honest clients. "Points" are delta
weights of all modules, flattened: one row per client, (K, D). The global model of the round
before is zero (a first round), so an update is the whole delta weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Deltas = dict[str, Tensor]
Attack = Callable[[Deltas, int, torch.Generator], Deltas]
State = dict[str, Tensor]
RANK = 8


def parted(deltas: Mapping[str, Tensor], bad: int) -> tuple[Deltas, Deltas]:
    """Honest updates (K - bad, out, in) and the attackers' own ones (bad, out, in), by module."""
    count = len(next(iter(deltas.values())))
    if not 0 < bad < count:
        raise ValueError(f"{bad} bad clients of {count}: wanted are 1 to {count - 1}")
    honest = {name: delta[: count - bad] for name, delta in deltas.items()}
    return honest, {name: delta[count - bad :] for name, delta in deltas.items()}


def points_of(deltas: Mapping[str, Tensor]) -> Tensor:
    """Points (K, D) from delta weights, module to (K, out, in), modules in order of name."""
    return torch.cat([deltas[name].flatten(1) for name in sorted(deltas)], dim=1)


def deltas_of(points: Tensor, like: Mapping[str, Tensor]) -> Deltas:
    """Delta weights, module to (m, out, in), from points (m, D); ``like`` gives the shapes."""
    names = sorted(like)
    shapes = [like[name].shape[1:] for name in names]
    parts = points.split([shape.numel() for shape in shapes], dim=1)
    return {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}


def copies(point: Tensor, bad: int, like: Mapping[str, Tensor]) -> Deltas:
    """The same point (D,) for all attackers."""
    return deltas_of(point.repeat(bad, 1), like)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Random matrix with orthonormal columns, (rows, columns)."""
    return torch.linalg.qr(normal(generator, rows, columns))[0]


def low_rank(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Random (rows, columns) matrix of rank ``RANK`` (or less, if it is small) and norm 1."""
    rank = min(RANK, rows, columns)
    product = normal(generator, rows, rank) @ normal(generator, rank, columns)
    return product / product.norm()


def median_norm(honest: Tensor) -> Tensor:
    """Median norm of the clients of one module, (n, out, in) to a scalar."""
    return honest.flatten(1).norm(dim=1).quantile(0.5)


def matched(delta: Tensor, honest: Tensor) -> Tensor:
    """``delta`` (bad, out, in) with every client's norm set to the honest median."""
    return delta / delta.flatten(1).norm(dim=1)[:, None, None] * median_norm(honest)


def factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in) with B A = ``delta`` (out, in), r its numerical rank, float64.

    Singular values are split evenly between both; those that together make up less than 1e-9 of
    the norm are left out. Columns come in falling order, so that a cut is the best truncation.
    """
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    tail = values.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tail > 1e-9 * tail[0]).sum()))
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def as_lora(
    deltas: Mapping[str, Tensor], config: Mapping[str, Any], rank: int | None = None
) -> tuple[State, dict[str, Any]]:
    """Dense delta weights, module to (out, in), as a float32 state dict and a configuration.

    Without ``rank`` the rank is the largest numerical rank of the modules, and B A is ``deltas``
    to 1e-6; with it, modules are cut to it. Smaller modules are padded with zeros, and
    lora_alpha is the rank, so that the scale is 1. ``config`` is the one to start from.
    """
    pairs = {name: factors(delta) for name, delta in deltas.items()}
    rank = rank or max(b.shape[1] for b, _ in pairs.values())
    state: State = {}
    for name, (b, a) in pairs.items():
        missing = max(0, rank - b.shape[1])
        a, b = a[:rank].float(), b[:, :rank].float()
        state[f"{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        state[f"{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    state = {name: value.contiguous() for name, value in state.items()}
    made = copy.deepcopy(dict(config))
    made.update(r=rank, lora_alpha=rank, use_rslora=False, rank_pattern={}, alpha_pattern={})
    return state, made
