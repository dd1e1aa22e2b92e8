"""The two Gram matrices B'B and AA' of a stack of factors, from which the norms, inner products and
spectra of the clients' delta weights follow; and both packed into the memory of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clair_cli.maths.factors.common_components import sides
from clair_cli.maths.factors.stack import (
    FactorStack,
    balance,
    client_columns,
    client_sums,
    owners,
    same_rank,
)

# Numbers of a side that a CPU converts and multiplies at once, so that they stay in its cache; and
# the least number of columns at once.
_CHUNK_NUMBERS, _LEAST_CHUNK = 2**18, 512
# Rows of one block of a symmetric product, in small and in large products.
_BLOCK, _LARGE_BLOCK = 64, 128

# A delta weight whose norm is below this share of the size of its rank-one components is rounding
# error, by the dtype of the products. Adapters subtracted from themselves left up to 5e-8 and 4e-4.
VANISHING = {torch.float64: 1e-7, torch.float32: 2e-3}
# A delta weight with a norm below this counts as zero: it underflows in one gauge of its factors
# and not in another. No product of float32 factors other than zero is below 1e-90.
LEAST_NORM = 1e-92


@dataclass(frozen=True)
class Grams:
    """B'B and AA' of a stack with balanced rank-one components, and the norms of delta weights.

    Float64, on the stack's device, or on the CPU where the device has no float64. With B and A as
    they stand in the stack, `delta_weight[k] = scale[k] * (B_k by_B_k) (by_A_k A_k)`; the Grams are
    those of the factors in brackets.

    Attributes:
        B: Gram of the columns of lora_B, (n_modules, sum_rank, sum_rank).
        A: Gram of the rows of lora_A, (n_modules, sum_rank, sum_rank).
        norms: Frobenius norm of each delta weight over its `scale`, (n_modules, n_clients).
        scale: at least 0; 0 for a zero delta weight, (n_modules, n_clients), weight units.
        ranks: columns of each client, as in the stack.
        shape: (out_features, in_features).
        by_B, by_A: factors that balance each component, (n_modules, sum_rank); see `balance`.
    """

    B: Tensor
    A: Tensor
    norms: Tensor
    scale: Tensor
    ranks: tuple[int, ...]
    shape: tuple[int, int]
    by_B: Tensor
    by_A: Tensor

    def module(self, index: int) -> Grams:
        """The Grams of one module of the batch."""
        one = slice(index, index + 1)
        return Grams(
            self.B[one], self.A[one], self.norms[one], self.scale[one], self.ranks, self.shape,
            self.by_B[one], self.by_A[one],
        )  # fmt: skip

    def of_clients(self, clients: Sequence[int]) -> Grams:
        """The Grams of some clients, in ascending order."""
        if len(clients) == len(self.ranks):
            return self
        columns = client_columns(self.ranks, clients).to(self.B.device)
        B, A = (chosen_columns(gram, columns) for gram in (self.B, self.A))
        return self.narrowed(clients, columns, B, A)

    def narrowed(self, clients: Sequence[int], columns: Tensor, B: Tensor, A: Tensor) -> Grams:
        """The Grams of some clients, from their two matrices.

        Args:
            clients: indices, ascending.
            columns: indices of the clients' columns in the stack.
            B, A: the Grams of these columns.
        """
        chosen = torch.tensor(list(clients)).to(self.norms.device)
        return Grams(
            B, A,
            self.norms.index_select(1, chosen), self.scale.index_select(1, chosen),
            tuple(self.ranks[k] for k in clients), self.shape,
            self.by_B.index_select(1, columns), self.by_A.index_select(1, columns),
        )  # fmt: skip

    def cpu(self) -> Grams:
        """A copy on the CPU."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        copies: dict[str, Any] = {k: v.cpu() for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **copies)

    @property
    def delta_norms(self) -> Tensor:
        """Frobenius norm of every delta weight, (n_modules, n_clients), weight units."""
        return self.norms * self.scale


def chosen_columns(square: Tensor, columns: Tensor) -> Tensor:
    """The chosen rows and columns of square matrices, (n_modules, n, n)."""
    return square[:, columns[:, None], columns]


def joined(parts: Sequence[Grams]) -> Grams:
    """Several batches as one; all modules have one shape, and their clients the same ranks."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return torch.cat(found) if all(isinstance(t, Tensor) for t in found) else found[0]

    return Grams(**{field.name: together(field.name) for field in fields(Grams)})


def grams(stack: FactorStack) -> Grams:
    """Both Gram matrices of a stack, and each client's norm from them.

    A delta weight that cancels to rounding error counts as zero (norm exactly 0).
    """
    B, A = (side.spread_square(_square(side.rows, stack.dtype)) for side in sides(stack))
    norm_A, norm_B = (g.diagonal(dim1=1, dim2=2).sqrt() for g in (A, B))
    by_A, by_B, scale = balance(norm_A, norm_B, stack.scaling.to(B.device), stack.ranks)
    for gram, by in ((A, by_A), (B, by_B)):
        gram.mul_(by[:, :, None]).mul_(by[:, None, :])
    inner = B * A
    components = client_sums(inner.diagonal(dim1=1, dim2=2), stack.ranks)
    squares = block_sums(inner, stack.ranks).diagonal(dim1=1, dim2=2)
    norms = delta_norms_over_scale(squares, components, scale, stack.dtype)
    if stack.common is not None:
        by_B = by_B * stack.common.by.to(by_B.device)
    return Grams(B, A, norms, scale, stack.ranks, stack.shape, by_B, by_A)


def delta_norms_over_scale(
    squares: Tensor, components: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Norms of the clients' delta weights over their scale; exactly 0 for a delta weight that
    cancels to rounding error or whose norm is below `LEAST_NORM`.

    Args:
        squares: the squared norms over the squared scale, as computed, (..., n_clients).
        components: summed squared norms of each client's rank-one components, likewise.
        scale: of each client, at least 0, likewise.
        dtype: of the products that `squares` was computed with.
    """
    norms = squares.clamp_min(0.0).sqrt()
    alive = (norms > VANISHING[dtype] * components.sqrt()) & (norms * scale > LEAST_NORM)
    return torch.where(alive, norms, 0.0)


def _square(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`rows @ rows'`, float64, on the device of `rows`, or on the CPU if products are not in
    float64.

    Args:
        rows: shape (n_modules, n, width).
        dtype: of the products.
    """
    n_modules, n, width = rows.shape
    step = max(1, width)
    if rows.device.type == "cpu":
        step = min(step, max(_LEAST_CHUNK, _CHUNK_NUMBERS // max(1, n)))
    gram = torch.zeros(n_modules, n, n, dtype=dtype, device=rows.device)
    # on a CPU one module after the other, so that a piece of it stays in the cache
    parts = 1 if rows.device.type == "cpu" else n_modules
    buffer = torch.empty_like(rows[:parts, :, :step], dtype=dtype)
    for first in range(0, n_modules, parts):
        some = slice(first, first + parts)
        for start in range(0, width, step):
            chunk = buffer[:, :, : min(step, width - start)]
            chunk.copy_(rows[some, :, start : start + step])
            add_symmetric(gram[some], chunk)
    mirror(gram)
    return gram if dtype == torch.float64 else gram.cpu().double()


def blocks(n: int) -> list[tuple[int, int]]:
    """Start and end of each block of rows of a symmetric (n, n) matrix."""
    step = _BLOCK if n <= 4 * _BLOCK else _LARGE_BLOCK
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def add_symmetric(gram: Tensor, rows: Tensor) -> None:
    """Add `rows @ rows'` to `gram` in place, only in and below the blocks on the diagonal: little
    more than half of the operations. `mirror` fills in the rest.

    Args:
        gram: shape (n_modules, n, n). rows: shape (n_modules, n, width).
    """
    for start, stop in blocks(rows.shape[1]):
        gram[:, start:stop, :stop].baddbmm_(rows[:, start:stop], rows[:, :stop].mT)


def mirror(gram: Tensor) -> None:
    """Copy the part of `gram` below the blocks on the diagonal to the part above them."""
    for start, stop in blocks(gram.shape[1]):
        gram[:, :start, start:stop] = gram[:, start:stop, :start].mT


def block_sums(matrix: Tensor, ranks: Sequence[int]) -> Tensor:
    """Sum a (..., sum_rank, sum_rank) matrix over each pair of clients' blocks.

    Returns:
        Shape (..., n_clients, n_clients).
    """
    n_clients, leading = len(ranks), matrix.shape[:-2]
    if same_rank(ranks):
        blocks = matrix.reshape(*leading, n_clients, ranks[0], n_clients, ranks[0])
        return blocks.sum(dim=(-3, -1))
    owner = owners(ranks, matrix.device)
    rows = matrix.new_zeros(*leading, n_clients, matrix.shape[-1])
    rows.index_add_(-2, owner, matrix)
    return rows.new_zeros(*leading, n_clients, n_clients).index_add_(-1, owner, rows)


@dataclass(frozen=True)
class PackedGrams:
    """Both Grams of some modules in the memory of one: one triangle of each is enough.

    Attributes:
        both: B on and below the diagonal, A above it, (n_modules, sum_rank, sum_rank), float64.
        diagonal_A: the diagonal of A, (n_modules, sum_rank).
        rest: the other fields of the Grams; its B and A are empty.
    """

    both: Tensor
    diagonal_A: Tensor
    rest: Grams

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.rest.ranks

    def of_clients(self, clients: Sequence[int]) -> Grams:
        """The Grams of some clients, in ascending order; symmetric to the last bit."""
        if len(clients) == len(self.ranks):
            B, A = _unpacked(self.both, self.diagonal_A)
            return replace(self.rest, B=B, A=A)
        columns = client_columns(self.ranks, clients).to(self.both.device)
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
    """A packed copy of the Grams of some modules."""
    none = pair.B.new_zeros(len(pair.B), 0, 0)
    return PackedGrams(
        torch.where(_below(pair.B), pair.B, pair.A),
        pair.A.diagonal(dim1=1, dim2=2).clone(),
        replace(pair, B=none, A=none),
    )


def packed_bytes(n_components: int) -> int:
    """Bytes of one module's two packed matrices, with `n_components` columns."""
    return 8 * n_components * (n_components + 1)


def _below(square: Tensor) -> Tensor:
    row = torch.arange(square.shape[-1], device=square.device)
    return row[:, None] >= row[None, :]
