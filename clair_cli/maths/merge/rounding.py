"""A module's merged delta weight as factors in the dtype of the file, and the error of rounding.

One pass over each side computes a few of its columns at a time, rounds them, and adds up the
rounding errors.
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

# Where the part that is cut off has this many times the norm that rounding may add, the Gram of the
# rounding errors is taken as diagonal.
_CLEAR = 8.0
# Singular vectors whose value is above the first share of the largest must have a squared norm that
# is 1 within the second number: far more than rounding changes, far less than a wrong vector does.
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
    """What is kept of one rounded side of some modules. X is the exact side and E the rounding
    error, (n_modules, kept, width) both.

    Attributes:
        cross: X E', float64, (n_modules, kept, kept).
        square: E E', float64, (n_modules, kept, kept); or its diagonal, with zeros elsewhere.
        sizes: diagonal of X X', float64, (n_modules, kept).
        signs: -1 where a vector's largest entry is negative, else 1, (n_modules, kept); 1 if not
            asked for.
    """

    cross: Tensor
    square: Tensor
    sizes: Tensor
    signs: Tensor

    def finite(self) -> Tensor:
        """Whether the file's dtype holds all numbers of each module, (n_modules,)."""
        return torch.isfinite(self.square.diagonal(dim1=1, dim2=2)).all(1)


def write_modules(
    exact: FactoredSVD, rank: int, scaling: float, dtype: torch.dtype
) -> list[WrittenModule | None]:
    """Cut some modules to `rank`, divide `scaling` out, and round to `dtype`.

    Singular values are split evenly between the sides. Signs are fixed (the largest entry of each
    left vector is positive), so equal input gives equal output.

    The reported error takes the rounding error as orthogonal to the part that the cut leaves out.

    Args:
        exact: the merged delta weights. Its products may be float32 for a dtype of 16 bits, whose
            rounding is 1e4 times larger.
        rank: of the output, padded with zeros where a module has less.
        scaling: the factor that readers of the file multiply B @ A with; positive.

    Returns:
        One entry per module, on the CPU; None for a module that overflows `dtype`.

    Raises:
        ValueError: `exact` has fewer singular vectors than are needed.
        ArithmeticError: the vectors do not fit the singular values: a fault of this program.
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
    """`write_modules` for modules that are finite and not zero."""
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
    """Check that the leading vectors have the norms that the singular values ask for.

    Args:
        sizes: squared norms of the vectors, (n_modules, kept); entries that are not finite are
            passed over.
        expected: the squared norms that they should have, likewise.

    Raises:
        ArithmeticError: they have others: a fault of this program.
    """
    leading = (expected > _LEADING * expected[:, :1]) & sizes.isfinite()
    off = float(torch.where(leading, (sizes - expected).abs() / expected, 0.0).amax())
    if off > _UNIT_ERROR:
        raise ArithmeticError(f"singular vectors to be written are off by {off:.2g}")


def _unit(largest: float) -> float:
    """A power of two as unit for the factors, so that squares of their rounding errors fit float32:
    1, unless the norm of a factor's largest column, the root of `largest`, is far from 1."""
    unit = 2.0 ** round(math.log2(largest) / 2)
    return 1.0 if 2.0**-20 <= unit <= 2.0**20 else unit


def _round(
    pieces: Iterator[Tensor], out: Tensor, unit: Tensor | None, whole: bool, *, signed: bool
) -> _RoundedSide:
    """Fill `out`, (n_modules, kept, width), with `unit` times the pieces of a side.

    Products of rounding errors run in float32, on numbers of about size one.

    Args:
        unit: one per module, (n_modules, 1, 1); None if all are 1.
        whole: whether to compute E E' as a whole; else only its diagonal.
        signed: whether to find the vectors' signs.
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

    Written as [B, E] [F; A + F], its norm follows from two small Grams, with a relative error of
    about 1e-6. With only the diagonals of E'E and FF' the relative error is at most eps times the
    number of components, and about 1e-5 in practice: the entries left out enter in third order.
    """
    rows, columns = left.signs[:, :, None], left.signs[:, None, :]  # those of lora_A's rows
    BE, EE = rows * left.cross * columns, rows * left.square * columns
    AF, FF = right.cross, right.square
    below = torch.diag_embed(diagonal) + AF + AF.mT + FF
    square = (diagonal * FF.diagonal(dim1=1, dim2=2)).sum(1) + (EE * below).sum((1, 2))
    square = square + 2 * (BE * (AF.mT + FF)).sum((1, 2))
    return square.clamp_min(0.0).sqrt()
