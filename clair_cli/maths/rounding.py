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

# Where what is cut off is this many times what rounding may add, the latter is not made to its
# last digit.
_CLEAR = 8.0


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
    """One side, rounded: X the exact one and E what rounding added to it, (kept, width).

    Attributes:
        cross: X E', float64, (kept, kept).
        square: E E', or its diagonal alone with zeros beside it.
        signs: -1 where a vector's largest entry is negative, else 1, (kept,); 1 if not asked for.
    """

    cross: Tensor
    square: Tensor
    signs: Tensor

    def finite(self) -> Tensor:
        """Whether the dtype holds all of it."""
        return torch.isfinite(self.square.diagonal()).all()


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
    device = exact.lora_B.device
    kept = min(rank, len(exact.values))
    if exact.n_vectors < kept:
        raise ValueError(f"{exact.n_vectors} singular vectors, {kept} needed")
    lora_B = torch.empty(exact.shape[0], rank, dtype=dtype, device=device)
    lora_A = torch.empty(rank, exact.shape[1], dtype=dtype, device=device)
    largest = float(exact.values[0]) if kept else 0.0
    tail = tail_norm(exact.values, rank)
    if largest == 0.0:
        return WrittenModule(lora_A.zero_().cpu(), lora_B.zero_().cpu(), tail)
    lora_B[:, kept:], lora_A[kept:] = 0, 0
    if not math.isfinite(largest):  # NaN too
        return None
    unit = _unit(largest / scaling)
    whole = tail < _CLEAR * torch.finfo(dtype).eps * tail_norm(exact.values, 0)
    amounts = exact.values[:kept].clamp_min(0.0).sqrt() / (unit * math.sqrt(scaling))
    amounts = amounts.to(device)
    left = _round(exact.left_pieces(amounts), lora_B.mT[:kept], unit, whole, signed=True)
    amounts = amounts * left.signs
    right = _round(exact.right_pieces(amounts), lora_A[:kept], unit, whole, signed=False)
    if not (left.finite() & right.finite()):
        return None
    if device.type != "cpu" or (left.signs < 0).any():
        lora_B[:, :kept] *= left.signs.to(dtype)
    rounding = scaling * unit**2 * _rounding_error(amounts.square(), left, right)
    return WrittenModule(lora_A.cpu(), lora_B.cpu(), math.hypot(tail, rounding))


def _unit(largest: float) -> float:
    """What factors are measured in, so that squares of their roundings fit float32: 1, unless the
    largest column of a factor, whose square this is, is far from it; a power of two."""
    unit = 2.0 ** round(math.log2(largest) / 2)
    return 1.0 if 2.0**-20 <= unit <= 2.0**20 else unit


def _round(
    pieces: Iterator[Tensor], out: Tensor, unit: float, whole: bool, *, signed: bool
) -> _Side:
    """Fill `out`, (kept, width), with `unit` times the pieces of a side.

    The products run in float32 on terms of about size one.
    """
    kept, start = len(out), 0
    cross = square = lowest = highest = torch.zeros(0)
    for piece in pieces:
        written = out[:, start : start + piece.shape[1]]
        if unit == 1.0:
            wrong = (written.copy_(piece) - piece).float()
        else:
            wrong = (written.copy_(piece * unit).to(piece.dtype) / unit - piece).float()
        if start == 0:
            cross, square = wrong.new_zeros(kept, kept), wrong.new_zeros(1, kept, kept)
            lowest = highest = piece.new_zeros(kept)
        cross.addmm_(piece.float(), wrong.mT)
        if whole:
            add_symmetric(square, wrong[None])
        else:
            square[0].diagonal().add_(wrong.square().sum(1))
        if signed:  # aminmax takes 20 times as long
            lowest = torch.minimum(lowest, piece.amin(dim=1))
            highest = torch.maximum(highest, piece.amax(dim=1))
        start += piece.shape[1]
    mirror(square)
    return _Side(
        cross.double(), square[0].double(), torch.where(-lowest > highest, -1.0, 1.0).double()
    )  # fmt: skip


def _rounding_error(diagonal: Tensor, left: _Side, right: _Side) -> float:
    """Norm of (B + E)(A + F) - B A, where B'B = AA' = diag(diagonal).

    As [B, E] [F; A + F] it is a sum over two small Grams: relative error about 1e-6 of an error.
    Without what lies beside the diagonal of E'E and FF' it is off by no more than eps times the
    number of terms, and by about 1e-5 in truth: that is of third order in what rounding adds.
    """
    signs = left.signs  # of lora_B's columns; lora_A's rows have them already
    BE, EE = signs[:, None] * left.cross * signs, signs[:, None] * left.square * signs
    AF, FF = right.cross, right.square
    below = torch.diag(diagonal) + AF + AF.mT + FF
    square = (diagonal * FF.diagonal()).sum() + (EE * below).sum()
    square = square + 2 * (BE * (AF.mT + FF)).sum()
    return math.sqrt(max(0.0, float(square)))
