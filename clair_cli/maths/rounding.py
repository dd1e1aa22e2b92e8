"""A module's merged update as factors in the dtype of the file, and what that rounding costs.

In one pass over pieces of each side: a piece is made, rounded, compared and let go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.grams import add_symmetric, mirror
from clair_cli.maths.lowrank import tail_norm
from clair_cli.maths.thin import Thin


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


@dataclass(frozen=True)
class _Side:
    """One side, rounded.

    With X the exact side over the size of its largest vector and E what rounding added to it, both
    over that size, (kept, width), and E measured in `step`s:

    Attributes:
        cross: X E', float64, (kept, kept). square: E E'.
        signs: -1 where a vector's largest entry is negative, else 1, (kept,).
        finite: whether the dtype holds all of it.
    """

    cross: Tensor
    square: Tensor
    signs: Tensor
    finite: bool


def write_module(
    exact: Thin, rank: int, scaling: float, dtype: torch.dtype
) -> WrittenModule | None:
    """Cut to `rank`, divide `scaling` out, round to `dtype`; None if that overflows.

    Singular values are split evenly between the sides. Signs are fixed (the largest entry of each
    left vector is positive), so equal input gives equal output.

    What rounding adds is taken as orthogonal to what the cut leaves out.

    Args:
        exact: the merged delta weight. Its products may be float32 for a dtype of 16 bits, whose
            rounding is 1e4 times larger.
        rank: of the output, zero padded where the module has less.
        scaling: what a reader will multiply B @ A with; positive.

    Raises:
        ValueError: fewer singular vectors are known.
    """
    kept = min(rank, len(exact.values))
    if exact.n_vectors < kept:
        raise ValueError(f"{exact.n_vectors} singular vectors, {kept} needed")
    lora_B = torch.zeros(exact.shape[0], rank, dtype=dtype)
    lora_A = torch.zeros(rank, exact.shape[1], dtype=dtype)
    largest = float(exact.values[0]) if kept else 0.0
    tail = tail_norm(exact.values, rank)
    if largest == 0.0:
        return WrittenModule(lora_A, lora_B, tail)
    if not math.isfinite(largest):  # NaN too
        return None
    unit = 2.0 ** round(math.log2(largest / scaling) / 2)  # of a factor's largest column
    amounts = exact.values[:kept].clamp_min(0.0).sqrt() / (unit * math.sqrt(scaling))
    step = torch.finfo(dtype).eps
    left = _round(exact.left_pieces(amounts), lora_B.mT[:kept], unit, step)
    amounts = amounts * left.signs
    right = _round(exact.right_pieces(amounts), lora_A[:kept], unit, step)
    if not (left.finite and right.finite):
        return None
    if (left.signs < 0).any():
        lora_B[:, :kept] *= left.signs.to(dtype)
    rounding = scaling * unit**2 * _rounding_error(amounts.square(), left, right, step)
    return WrittenModule(lora_A, lora_B, math.hypot(tail, rounding))


def _round(pieces: Iterator[Tensor], out: Tensor, unit: float, step: float) -> _Side:
    """Fill `out`, (kept, width), with `unit` times the pieces of a side.

    The products run in float32 on terms of about size one.
    """
    kept, start = len(out), 0
    cross = square = lowest = highest = torch.zeros(0)
    for piece in pieces:
        stop = start + piece.shape[1]
        rounded = (piece * unit).to(out.dtype)
        out[:, start:stop] = rounded
        wrong = (rounded.to(piece.dtype) / unit).sub_(piece).div_(step).float()
        low, high = piece.amin(dim=1), piece.amax(dim=1)  # aminmax takes 20 times as long
        if start == 0:
            cross, square = wrong.new_zeros(kept, kept), wrong.new_zeros(1, kept, kept)
            lowest, highest = low, high
        cross.addmm_(piece.float(), wrong.mT)
        add_symmetric(square, wrong[None])
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
        start = stop
    mirror(square)
    return _Side(
        cross.double().cpu(),
        square[0].double().cpu(),
        torch.where(-lowest > highest, -1.0, 1.0).double().cpu(),
        bool(torch.isfinite(square[0].diagonal()).all()),
    )


def _rounding_error(diagonal: Tensor, left: _Side, right: _Side, step: float) -> float:
    """Norm of (B + step E)(A + step F) - B A, where B'B = AA' = diag(diagonal).

    As [B, step E] [step F; A + step F] it is a sum over two small Grams: relative error about
    1e-6 of an error.
    """
    signs = left.signs  # of lora_B's columns; lora_A's rows have them already
    BE, EE = signs[:, None] * left.cross * signs, signs[:, None] * left.square * signs
    AF, FF = right.cross, right.square
    below = torch.diag(diagonal) + step * (AF + AF.mT) + step**2 * FF
    square = (diagonal * FF.diagonal()).sum() + (EE * below).sum()
    square = square + 2 * (BE * (AF.mT + step * FF)).sum()
    return step * math.sqrt(max(0.0, float(square)))
