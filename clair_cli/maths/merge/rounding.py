"""A module's merged update as factors in the dtype of the file, and what that rounding costs.

In one pass over pieces of each side: a piece is made, rounded, compared and let go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.factored_svd import FactoredSVD
from clair_cli.maths.factors.grams import add_symmetric, mirror
from clair_cli.maths.factors.lowrank import tail_norm

# Where what is cut off is this many times what rounding may add, the latter is not made to its
# last digit.
_CLEAR = 8.0
# Vectors of singular values above the first share of the largest must have norms that are 1 within
# the second: far more than rounding, and far less than what a wrong vector has.
_LEADING, _UNIT_ERROR = 1e-2, 1e-2


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
class _RoundedSide:
    """One side of some modules, rounded: X the exact one and E what rounding added to it,
    (n_modules, kept, width).

    Attributes:
        cross: X E', float64, (n_modules, kept, kept).
        square: E E', or its diagonal alone with zeros beside it.
        sizes: diagonal of X X', float64, (n_modules, kept).
        signs: -1 where a vector's largest entry is negative, else 1, (n_modules, kept); 1 if not
            asked for.
    """

    cross: Tensor
    square: Tensor
    sizes: Tensor
    signs: Tensor

    def finite(self) -> Tensor:
        """Whether the dtype holds all of each module, (n_modules,)."""
        return torch.isfinite(self.square.diagonal(dim1=1, dim2=2)).all(1)


def write_modules(
    exact: FactoredSVD, rank: int, scaling: float, dtype: torch.dtype
) -> list[WrittenModule | None]:
    """Cut some modules to `rank`, divide `scaling` out, round to `dtype`; None where that
    overflows.

    Singular values are split evenly between the sides. Signs are fixed (the largest entry of each
    left vector is positive), so equal input gives equal output.

    What rounding adds is taken as orthogonal to what the cut leaves out.

    Args:
        exact: the merged delta weights. Its products may be float32 for a dtype of 16 bits, whose
            rounding is 1e4 times larger.
        rank: of the output, zero padded where a module has less.
        scaling: what a reader will multiply B @ A with; positive.

    Returns:
        The factors, on the CPU.

    Raises:
        ValueError: fewer singular vectors are known.
        ArithmeticError: see `_check_vectors`.
    """
    kept = min(rank, exact.values.shape[1])
    if exact.n_vectors < kept:
        raise ValueError(f"{exact.n_vectors} singular vectors, {kept} needed")
    largest = exact.values[:, 0].tolist() if kept else [0.0] * len(exact.values)
    ordinary = [value != 0.0 and math.isfinite(value) for value in largest]  # NaN is not
    if all(ordinary):
        return _write_finite(exact, rank, scaling, dtype)
    if len(ordinary) > 1:
        return [w for one in exact.each() for w in write_modules(one, rank, scaling, dtype)]
    if largest[0] != 0.0:
        return [None]
    lora_A, lora_B = torch.zeros(rank, exact.shape[1]), torch.zeros(exact.shape[0], rank)
    tail = tail_norm(exact.values[0], rank)
    return [WrittenModule(lora_A.to(dtype), lora_B.to(dtype), tail)]


def _write_finite(
    exact: FactoredSVD, rank: int, scaling: float, dtype: torch.dtype
) -> list[WrittenModule | None]:
    """The same where all are finite and not zero."""
    n_modules, kept, device = (
        len(exact.values),
        min(rank, exact.values.shape[1]),
        exact.lora_B.device,
    )
    lora_B = torch.empty(n_modules, exact.shape[0], rank, dtype=dtype, device=device)
    lora_A = torch.empty(n_modules, rank, exact.shape[1], dtype=dtype, device=device)
    lora_B[:, :, kept:], lora_A[:, kept:] = 0, 0
    units = [_unit(value / scaling) for value in exact.values[:, 0].tolist()]
    unit = torch.tensor(units, dtype=torch.float64)[:, None]
    tails = [tail_norm(values, rank) for values in exact.values]
    eps = _CLEAR * torch.finfo(dtype).eps
    whole = any(t < eps * tail_norm(v, 0) for t, v in zip(tails, exact.values, strict=True))
    amounts = exact.values[:, :kept].clamp_min(0.0).sqrt() / (unit * math.sqrt(scaling))
    amounts = amounts.to(device)
    by = None if set(units) == {1.0} else unit.to(device)[:, :, None]
    left = _round(exact.left_pieces(amounts), lora_B.mT[:, :kept], by, whole, signed=True)
    amounts = amounts * left.signs
    right = _round(exact.right_pieces(amounts), lora_A[:, :kept], by, whole, signed=False)
    if device.type != "cpu" or (left.signs < 0).any():
        lora_B[:, :, :kept] *= left.signs.to(dtype)[:, None, :]
    for side in (left, right):
        _check_vectors(side.sizes, amounts.square())
    errors = _rounding_errors(amounts.square(), left, right).cpu().tolist()
    finite = (left.finite() & right.finite()).cpu().tolist()
    lora_A, lora_B = lora_A.cpu(), lora_B.cpu()
    return [
        WrittenModule(
            lora_A[i], lora_B[i], math.hypot(tails[i], scaling * units[i] ** 2 * errors[i])
        )
        if finite[i]
        else None
        for i in range(n_modules)
    ]


def _check_vectors(sizes: Tensor, expected: Tensor) -> None:
    """Make sure that the leading vectors are what the singular values were found with.

    Args:
        sizes, expected: squares of the vectors' norms, (n_modules, kept). What is not finite is
            looked for elsewhere.

    Raises:
        ArithmeticError: they are not: a fault of this program.
    """
    leading = (expected > _LEADING * expected[:, :1]) & sizes.isfinite()
    off = float(torch.where(leading, (sizes - expected).abs() / expected, 0.0).amax())
    if off > _UNIT_ERROR:
        raise ArithmeticError(f"singular vectors to be written are off by {off:.2g}")


def _unit(largest: float) -> float:
    """What factors are measured in, so that squares of their roundings fit float32: 1, unless the
    largest column of a factor, whose square this is, is far from it; a power of two."""
    unit = 2.0 ** round(math.log2(largest) / 2)
    return 1.0 if 2.0**-20 <= unit <= 2.0**20 else unit


def _round(
    pieces: Iterator[Tensor], out: Tensor, unit: Tensor | None, whole: bool, *, signed: bool
) -> _RoundedSide:
    """Fill `out`, (n_modules, kept, width), with `unit` times the pieces of a side.

    The products run in float32 on terms of about size one.

    Args:
        unit: one per module, (n_modules, 1, 1); None if all are 1.
    """
    (n_modules, kept, _), start = out.shape, 0
    cross = square = sizes = lowest = highest = torch.zeros(0)
    for piece in pieces:
        written = out[:, :, start : start + piece.shape[2]]
        if unit is None:
            wrong = (written.copy_(piece) - piece).float()
        else:
            wrong = (written.copy_(piece * unit).to(piece.dtype) / unit - piece).float()
        if start == 0:
            cross, square = wrong.new_zeros(2, n_modules, kept, kept)
            sizes = wrong.new_zeros(n_modules, kept, dtype=torch.float64)
            lowest = highest = piece.new_zeros(n_modules, kept)
        cross.baddbmm_(piece.float(), wrong.mT)
        sizes += piece.square().sum(2)
        if whole:
            add_symmetric(square, wrong)
        else:
            square.diagonal(dim1=1, dim2=2).add_(wrong.square().sum(2))
        if signed:  # aminmax takes 20 times as long
            lowest = torch.minimum(lowest, piece.amin(dim=2))
            highest = torch.maximum(highest, piece.amax(dim=2))
        start += piece.shape[2]
    mirror(square)
    return _RoundedSide(
        cross.double(), square.double(), sizes, torch.where(-lowest > highest, -1.0, 1.0).double()
    )  # fmt: skip


def _rounding_errors(diagonal: Tensor, left: _RoundedSide, right: _RoundedSide) -> Tensor:
    """Norm of (B + E)(A + F) - B A, where B'B = AA' = diag(diagonal), (n_modules,).

    As [B, E] [F; A + F] it is a sum over two small Grams: relative error about 1e-6 of an error.
    Without what lies beside the diagonal of E'E and FF' it is off by no more than eps times the
    number of terms, and by about 1e-5 in truth: that is of third order in what rounding adds.
    """
    rows, columns = left.signs[:, :, None], left.signs[:, None, :]  # lora_A's rows have them
    BE, EE = rows * left.cross * columns, rows * left.square * columns
    AF, FF = right.cross, right.square
    below = torch.diag_embed(diagonal) + AF + AF.mT + FF
    square = (diagonal * FF.diagonal(dim1=1, dim2=2)).sum(1) + (EE * below).sum((1, 2))
    square = square + 2 * (BE * (AF.mT + FF)).sum((1, 2))
    return square.clamp_min(0.0).sqrt()
