"""Square matrices with one block per client on the diagonal, and zeros elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.stack import same_rank


@dataclass(frozen=True)
class BlockDiagonal:
    """Block-diagonal matrices of some modules, stored as their blocks.

    Attributes:
        blocks: (n_modules, n_clients, rank, rank), one tensor where all clients have one rank; else
            one tensor (n_modules, rank, rank) for each client.
        ranks: size of each client's block.
    """

    blocks: Tensor | tuple[Tensor, ...]
    ranks: tuple[int, ...]

    def times(self, rows: Tensor) -> Tensor:
        """The product of every module's matrix with `rows`, (n_modules, sum_rank, m)."""
        if isinstance(self.blocks, Tensor):
            each = torch.unflatten(rows, 1, (len(self.ranks), -1))
            return (self.blocks @ each).flatten(1, 2)
        parts = torch.split(rows, list(self.ranks), dim=1)
        return torch.cat([b @ part for b, part in zip(self.blocks, parts, strict=True)], dim=1)

    @property
    def mT(self) -> BlockDiagonal:  # noqa: N802 - as a tensor's
        """The transposed matrices."""
        if isinstance(self.blocks, Tensor):
            return BlockDiagonal(self.blocks.mT, self.ranks)
        return BlockDiagonal(tuple(block.mT for block in self.blocks), self.ranks)

    def congruent(self, square: Tensor) -> Tensor:
        """T' @ square @ T, with T the block-diagonal matrices.

        Args:
            square: symmetric, (n_modules, sum_rank, sum_rank).
        """
        return self.mT.times(self.mT.times(square).mT)

    def scaled(self, by: Tensor) -> BlockDiagonal:
        """Each client's block times the client's factor in `by`, (n_modules, n_clients)."""
        if isinstance(self.blocks, Tensor):
            return BlockDiagonal(self.blocks * by[:, :, None, None], self.ranks)
        each = zip(self.blocks, by.unbind(1), strict=True)
        return BlockDiagonal(tuple(b * n[:, None, None] for b, n in each), self.ranks)


def of_blocks(blocks: Sequence[Tensor]) -> BlockDiagonal:
    """The block-diagonal matrix of one module, from one block (rank, rank) per client."""
    ranks = tuple(len(block) for block in blocks)
    if same_rank(ranks):
        return BlockDiagonal(torch.stack(list(blocks))[None], ranks)
    return BlockDiagonal(tuple(block[None] for block in blocks), ranks)


def diagonal_blocks(square: Tensor, ranks: Sequence[int]) -> BlockDiagonal:
    """The diagonal blocks of square matrices, (n_modules, sum_rank, sum_rank)."""
    if same_rank(ranks):
        n, rank = len(ranks), ranks[0]
        found = square.view(len(square), n, rank, n, rank).diagonal(dim1=1, dim2=3)
        return BlockDiagonal(found.permute(0, 3, 1, 2), tuple(ranks))
    ends = list(itertools.accumulate(ranks))
    places = [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]
    return BlockDiagonal(tuple(square[:, place, place] for place in places), tuple(ranks))
