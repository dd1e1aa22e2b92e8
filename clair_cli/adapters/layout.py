"""The kind of layer that a pair of factors adapts, and the shape of the delta weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from clair_cli.errors import RejectedClient

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["linear", "embedding", "convolution"]


@dataclass(frozen=True)
class Layout:
    """How one module's factors stand in a file, and how they multiply.

    Everything is computed on one matrix per module, `B @ A`:

        linear       A (rank, in), B (out, rank)                 (out, in), the layer's weight
        embedding    A (rank, entries), B (dim, rank)            (dim, entries), the transpose
                                                                 of the layer's weight
        convolution  A (rank, in, *kernel), B (out, rank, 1...)  (out, in * kernel), the layer's
                                                                 weight with its axes joined

    as PEFT's `get_delta_weight` has it (peft/tuners/lora/layer.py).

    Attributes:
        weight: shape of the layer's weight and of the delta weight: (out, in), (entries, dim)
            or (out, in, *kernel).
    """

    kind: Kind
    weight: tuple[int, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of `B @ A`."""
        if self.kind == "embedding":
            return self.weight[1], self.weight[0]
        return self.weight[0], math.prod(self.weight[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Lengths of a convolution's kernel; () for other layers."""
        return self.weight[2:]

    def flat(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """Stored factors as matrices (rank, columns) and (rows, rank); views where possible."""
        if lora_A.ndim == lora_B.ndim == 2:  # nearly always; each call of torch holds up threads
            return lora_A, lora_B
        return lora_A.reshape(lora_A.shape[0], -1), lora_B.reshape(lora_B.shape[0], -1)

    def stored(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `flat`: matrices in the shapes of the table."""
        if self.kind != "convolution":
            return lora_A, lora_B
        rank = lora_A.shape[0]
        ones = (1,) * len(self.kernel)
        return (
            lora_A.reshape(rank, self.weight[1], *self.kernel),
            lora_B.reshape(self.weight[0], rank, *ones),
        )

    def __str__(self) -> str:
        return str(self.weight) if self.kind == "linear" else f"{self.weight} ({self.kind})"


def layout_of(
    shape_A: Sequence[int],
    shape_B: Sequence[int],
    *,
    embedding: bool,
    names: tuple[str, str] = ("lora_A", "lora_B"),
) -> tuple[Layout, int]:
    """Layout and rank of a pair.

    Args:
        shape_A, shape_B: of the stored tensors, every axis at least 1.
        embedding: whether the names say `lora_embedding`.
        names: of the two tensors, for the error.

    Returns:
        `(layout, rank)`, the rank at least 1.

    Raises:
        RejectedClient: no product of these shapes, or a grouped convolution.
    """
    axes_A, axes_B = len(shape_A), len(shape_B)
    if axes_A != axes_B or axes_A not in ((2,) if embedding else (2, 3, 4, 5)):
        raise RejectedClient(
            f"{names[0]} has {_axes(axes_A)}, shape {tuple(shape_A)}, and {names[1]} has "
            f"{_axes(axes_B)}, shape {tuple(shape_B)}",
            found=f"{_axes(axes_A)} and {_axes(axes_B)}",
            expected="2 axes each, or 3 to 5 for a convolution",
            hint="re-export this adapter; a tensor with one axis is a shard that was not gathered",
        )
    rank, kernel = shape_A[0], tuple(shape_A[2:])
    if axes_A == 3 and shape_B[2] == shape_A[1] > 1 and shape_B[0] == shape_A[0]:
        raise RejectedClient(
            f"{names[0]} and {names[1]} are stacked factors, one pair for each of {shape_A[0]} "
            "experts or layers",
            found=f"lora_A {tuple(shape_A)}, lora_B {tuple(shape_B)}",
            expected="one pair of factors for each module, of 2 axes each",
            hint="save each expert's factors by themselves",
        )
    if kernel and any(length != 1 for length in shape_B[2:]):
        raise RejectedClient(
            f"lora_B of a convolution has kernel {tuple(shape_B[2:])}; and stacked experts "
            "are (E, rank, in) and (E, out, rank)",
            found=f"lora_A {tuple(shape_A)}, lora_B {tuple(shape_B)}",
            expected=f"lora_B (out, rank{', 1' * len(kernel)}), or stacked experts",
        )
    if kernel and shape_B[1] < rank and rank % shape_B[1] == 0:
        raise RejectedClient(
            f"a grouped convolution ({rank // shape_B[1]} groups) is not supported: its update "
            "is one product per group",
            found=f"lora_A {tuple(shape_A)}, lora_B {tuple(shape_B)}",
            expected="a convolution with groups = 1",
        )
    if rank != shape_B[1]:
        raise RejectedClient(
            f"lora_A has rank {rank} but lora_B has rank {shape_B[1]}",
            found=f"lora_A {tuple(shape_A)}, lora_B {tuple(shape_B)}",
            expected="lora_A (rank, in_features), lora_B (out_features, rank)",
            hint="re-export this adapter, or move it out of the cohort's folder",
        )
    if embedding:
        return Layout("embedding", (shape_A[1], shape_B[0])), rank
    kind: Kind = "convolution" if kernel else "linear"
    return Layout(kind, (shape_B[0], *shape_A[1:])), rank


def _axes(number: int) -> str:
    return "1 axis" if number == 1 else f"{number} axes"
