"""Singular value decompositions whose long sides stay products of factors, and are computed a few
columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.lowrank import SVD

# Columns of a side that a CPU computes at once, of all modules together: they stay in its cache.
_PIECE = 1024


@dataclass(frozen=True)
class FactoredSVD:
    """Singular value decompositions D = (lora_B @ left) diag(values) (right @ lora_A) of some
    modules of one shape, with the leading m' of m singular vectors.

    Attributes:
        lora_B: shape (n_modules, out_features, n), any float dtype.
        lora_A: shape (n_modules, n', in_features).
        values: all singular values, descending, (n_modules, m), float64, CPU.
        left: shape (n_modules, n, m'), m' <= m, on the device of lora_B or on the CPU; None for
            the identity. `lora_B @ left` has orthonormal columns.
        right: shape (n_modules, m', n'); None for the identity. `right @ lora_A` has orthonormal
            rows.
        dtype: in which the products with lora_B and lora_A are computed.
    """

    lora_B: Tensor
    lora_A: Tensor
    values: Tensor
    left: Tensor | None
    right: Tensor | None
    dtype: torch.dtype = torch.float64

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.lora_B.shape[1], self.lora_A.shape[2]

    @property
    def n_vectors(self) -> int:
        """Number m' of singular vectors."""
        known = self.lora_B if self.left is None else self.left
        return known.shape[2]

    def each(self) -> list[FactoredSVD]:
        """One decomposition per module."""
        if len(self.values) == 1:
            return [self]
        return [
            FactoredSVD(
                self.lora_B[i : i + 1], self.lora_A[i : i + 1], self.values[i : i + 1],
                None if self.left is None else self.left[i : i + 1],
                None if self.right is None else self.right[i : i + 1],
                self.dtype,
            )
            for i in range(len(self.values))
        ]  # fmt: skip

    def left_pieces(self, amounts: Tensor) -> Iterator[Tensor]:
        """The leading k left singular vectors, each times a factor, as rows; a few columns at a
        time.

        Args:
            amounts: the factors, (n_modules, k).

        Yields:
            Shape (n_modules, k, up to _PIECE), in `dtype`, on the factors' device.
        """
        return self._pieces(self.lora_B.mT, None if self.left is None else self.left.mT, amounts)

    def right_pieces(self, amounts: Tensor) -> Iterator[Tensor]:
        """As `left_pieces`, of the right singular vectors."""
        return self._pieces(self.lora_A, self.right, amounts)

    def _pieces(self, rows: Tensor, turn: Tensor | None, amounts: Tensor) -> Iterator[Tensor]:
        k, device, width = amounts.shape[1], rows.device, rows.shape[2]
        by = amounts.to(device, torch.float64)[:, :, None]
        factor = (by if turn is None else turn[:, :k].to(device) * by).to(self.dtype)
        step = max(1, _PIECE // len(rows)) if device.type == "cpu" else width
        for start in range(0, width, step):
            piece = rows[:, :, start : start + step]
            if turn is None:
                yield piece[:, :k].to(self.dtype) * factor
            elif piece.stride(1) == 1:  # stored by columns: make the result so too
                yield (piece.mT.to(self.dtype) @ factor.mT).mT
            else:
                yield factor @ piece.to(self.dtype)


def factored(exact: SVD) -> FactoredSVD:
    """One module's decomposition from an SVD whose vectors are laid out already."""
    return FactoredSVD(
        exact.left[None], exact.right[None], exact.values[None], None, None, exact.left.dtype
    )
