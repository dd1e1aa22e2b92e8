"""The merged delta weight of one module: a weighted mean, exact as a stack of factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.lowrank import Product, Spectrum, tail_norm
from clair_cli.maths.stack import Factors, symmetric_product

# Ranks that serving engines accept for a LoRA adapter.
SERVING_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def weighted_sum(
    clients: Sequence[Factors], weights: Sequence[float], shape: tuple[int, int]
) -> Product:
    """sum_k weights[k] * scaling_k * B_k @ A_k, as one product of stacked factors.

    Args:
        clients: `(lora_A, lora_B, scaling)` or None (a zero update), in a fixed order.
        weights: one finite number per client; a client of weight 0 is left out.
        shape: (out_features, in_features).

    Returns:
        Float64 factors, each rank-one term split evenly between the two (no overflow, and
        nothing lost to a client's gauge).
    """
    out_features, in_features = shape
    columns: list[Tensor] = []
    rows: list[Tensor] = []
    for factors, weight in zip(clients, weights, strict=True):
        if factors is None or weight == 0.0 or factors[2] == 0.0:
            continue
        lora_A, lora_B = factors[0].double(), factors[1].double()
        norm_A = torch.linalg.vector_norm(lora_A, dim=1)
        norm_B = torch.linalg.vector_norm(lora_B, dim=0)
        alive = (norm_A > 0) & (norm_B > 0)
        balance = (norm_A[alive] / norm_B[alive]).sqrt()
        columns.append(lora_B[:, alive] * (balance * weight * factors[2]))
        rows.append(lora_A[alive] / balance[:, None])
    if not columns:
        return Product(
            torch.zeros(out_features, 0, dtype=torch.float64),
            torch.zeros(0, in_features, dtype=torch.float64),
        )
    return Product(torch.cat(columns, dim=1), torch.cat(rows, dim=0))


def plain_distance(
    inner: Tensor, weights: Sequence[float], plain_weights: Sequence[float]
) -> tuple[float, float]:
    """Norm of the merged delta weight less the plain mean of all comparable clients, and norm
    of that plain mean.

    Args:
        inner: inner products of the delta weights of one module, (n_clients, n_clients).
    """
    plain = torch.tensor(plain_weights, dtype=inner.dtype)
    difference = torch.tensor(weights, dtype=inner.dtype) - plain
    squares = [float(w @ inner @ w) for w in (difference, plain)]
    return max(0.0, squares[0]) ** 0.5, max(0.0, squares[1]) ** 0.5


@dataclass(frozen=True)
class WrittenModule:
    """A module's factors as they will stand in the file, and what writing them cost.

    Attributes:
        lora_A: shape (rank, in_features), in the output dtype.
        lora_B: shape (out_features, rank), in the output dtype.
        error: norm of (exact merged delta weight - scaling * lora_B @ lora_A).
    """

    lora_A: Tensor
    lora_B: Tensor
    error: float


def write_module(
    exact: Spectrum, rank: int, scaling: float, dtype: torch.dtype
) -> WrittenModule | None:
    """Cut to `rank`, divide `scaling` out, round to `dtype`; None if that overflows.

    The singular vectors may be float32 for a dtype of 16 bits, whose rounding is 1e4 times larger.

    What rounding adds is taken as orthogonal to what the cut leaves out; the product of both
    factors' rounding errors is not, but smaller by another factor of the dtype's precision.

    Args:
        exact: the merged delta weight.
        rank: of the output, zero padded where the module has less.
        scaling: what a reader will multiply B @ A with; positive.
    """
    cut = exact.truncated(rank)
    half = scaling**-0.5
    scaled_A, scaled_B = cut.lora_A * half, cut.lora_B * half
    largest = torch.stack([t.abs().max() for t in (scaled_A, scaled_B) if t.numel()])
    if not torch.isfinite(largest.to(dtype)).all():  # NaN too
        return None
    lora_A, lora_B = scaled_A.to(dtype), scaled_B.to(dtype)
    kept = exact.values.new_zeros(rank)
    kept[: len(exact.values)] = exact.values[:rank]
    wrong_B = (lora_B.to(cut.lora_B.dtype) / half).sub_(cut.lora_B)
    wrong_A = (lora_A.to(cut.lora_A.dtype) / half).sub_(cut.lora_A)
    rounding = _rounding_error(cut, wrong_B, wrong_A, kept)
    return WrittenModule(lora_A, lora_B, math.hypot(tail_norm(exact.values, rank), rounding))


def _rounding_error(cut: Product, wrong_B: Tensor, wrong_A: Tensor, values: Tensor) -> float:
    """Norm of (B + wrong_B)(A + wrong_A) - B A, where B'B = AA' = diag(values).

    As [B wrong_B] [wrong_A; A + wrong_A] it is a sum over two small Grams. The products run in
    float32 on terms scaled to size one: relative error about 1e-6 of an error. Overwrites the
    wrongs.
    """
    scale = math.sqrt(float(values.max())) if len(values) else 0.0
    size = max(float(w.abs().max()) if w.numel() else 0.0 for w in (wrong_B, wrong_A))
    if scale == 0.0 or size == 0.0:
        return 0.0
    B, A = (cut.lora_B / scale).float(), (cut.lora_A / scale).float()
    wrong_B, wrong_A = wrong_B.div_(size).float(), wrong_A.div_(size).float()
    step = size / scale  # the errors' size beside the factors'
    diagonal = torch.diag(values / scale**2)
    BE, EE = (B.mT @ wrong_B).double(), symmetric_product(wrong_B.mT).double()
    AE, FF = (A @ wrong_A.mT).double(), symmetric_product(wrong_A).double()
    # columns [B, step E], rows [F; A + step F], all times step * scale**2
    below = diagonal + step * (AE + AE.mT) + step**2 * FF
    square = (diagonal * FF).sum() + 2 * (BE * (AE.mT + step * FF)).sum() + (EE * below).sum()
    return size * scale * math.sqrt(max(0.0, float(square)))


def choose_rank(
    errors: Mapping[int, float], error_target: float, largest: int = SERVING_RANKS[-1]
) -> tuple[int, bool]:
    """The smallest serving rank whose error is at most the target.

    Args:
        errors: relative error of the whole adapter at each serving rank.
        error_target: at least 0.

    Returns:
        The rank, and whether the largest one still misses the target.
    """
    for rank in sorted(errors):
        if errors[rank] <= error_target:
            return rank, False
    return largest, True
