"""A module's two Gram matrices in the memory of one, to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.grams import Grams, chosen_columns
from clair_cli.maths.stack import columns_of


@dataclass(frozen=True)
class PackedGrams:
    """Both Grams of some modules: they are symmetric, so each needs only one triangle.

    Attributes:
        both: B on and below the diagonal, A above it, (n_modules, sum_rank, sum_rank), float64.
        diagonal_A: (n_modules, sum_rank).
        rest: everything else but the sketches, with Grams of no size.
    """

    both: Tensor
    diagonal_A: Tensor
    rest: Grams

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.rest.ranks

    def of_clients(self, clients: Sequence[int] | None = None) -> Grams:
        """The Grams of some clients, in ascending order, or of all; symmetric to the last bit."""
        if clients is None or len(clients) == len(self.ranks):
            B, A = _unpacked(self.both, self.diagonal_A)
            return replace(self.rest, B=B, A=A)
        columns = columns_of(self.ranks, clients).to(self.both.device)
        both = chosen_columns(self.both, columns)
        B, A = _unpacked(both, self.diagonal_A.index_select(1, columns))
        return self.rest.narrowed(clients, columns, B, A)


def _unpacked(both: Tensor, diagonal_A: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = both.tril(-1), both.triu(1)
    B, A = lower + lower.mT, upper + upper.mT
    B.diagonal(dim1=1, dim2=2).copy_(both.diagonal(dim1=1, dim2=2))
    A.diagonal(dim1=1, dim2=2).copy_(diagonal_A)
    return B, A


def packed(pair: Grams) -> PackedGrams:
    """The Grams of some modules, copied."""
    none = pair.B.new_zeros(len(pair.B), 0, 0)
    return PackedGrams(
        torch.where(_below(pair.B), pair.B, pair.A),
        pair.A.diagonal(dim1=1, dim2=2).clone(),
        replace(pair, B=none, A=none, sketch_B=None, sketch_A=None),
    )


def packed_bytes(n_terms: int) -> int:
    """Of one module with so many terms, but for what is small beside it."""
    return 8 * n_terms * (n_terms + 1)


def _below(square: Tensor) -> Tensor:
    row = torch.arange(square.shape[-1], device=square.device)
    return row[:, None] >= row[None, :]
