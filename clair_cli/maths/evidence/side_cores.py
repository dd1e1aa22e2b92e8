"""Cores of one side: small matrices with the singular values of all unit delta weights of a module
side by side. The decomposition of `output` and `input` sharing runs on them.

Only directions that several clients make together matter to the decomposition: no client alone has
a singular value above 1, and the decomposition ignores values below 1. So directions whose singular
value is below _LEAST are cut off, and only each client's squared norm in them is kept: every norm
stays exact, and no singular value that was cut off is larger than _LEAST (with up to _MOST
directions kept). Each client took part in finding the leading directions, so its energy inside
those of the others comes out larger than in whole cores, by 0.02 and for all clients alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.similarity import unit_side
from clair_cli.maths.factors.grams import Grams
from clair_cli.maths.factors.roots import core_from_gram
from clair_cli.maths.factors.stack import block_norms

# Singular values below _LEAST are cut off (those of clients of rank 4 are at 0.5) in stacks of more
# than _WHOLE columns; at least _FEWEST directions are kept, and at most _MOST.
_LEAST, _WHOLE = 0.47, 128
_FEWEST, _MOST = 16, 64


@dataclass(frozen=True)
class SideCores:
    """Cores of some modules: one block of columns per client.

    Attributes:
        stack: (n_modules, rows, sum_rank), float64, CPU. A row is a leading direction; a client's
            columns are orthonormal coordinates of its unit delta weight on the other side.
        outside: squared norm of each client's part off these directions, (n_modules, n_clients).
        ranks: number of columns of each client.
    """

    stack: Tensor
    outside: Tensor
    ranks: tuple[int, ...]

    def widened(self, ranks: Sequence[int]) -> SideCores:
        """The same cores with zero columns added to each client, up to these ranks.

        Raises:
            ValueError: a client has more columns already.
        """
        if tuple(ranks) == self.ranks:
            return self
        if any(rank < own for rank, own in zip(ranks, self.ranks, strict=True)):
            raise ValueError(f"columns {self.ranks} do not fit {tuple(ranks)}")
        parts = zip(torch.split(self.stack, list(self.ranks), dim=-1), ranks, strict=True)
        padded = [torch.nn.functional.pad(part, (0, rank - part.shape[-1])) for part, rank in parts]
        return SideCores(torch.cat(padded, dim=-1), self.outside, tuple(ranks))


def side_cores(pair: Grams, side: str) -> SideCores:
    """Cores of a batch of modules, without the directions that no two clients make together.

    Args:
        pair: the Grams of all clients.
        side: "output" or "input".
    """
    core = unit_core(pair, side).cpu()
    rows = core.shape[1]
    if rows > _WHOLE:
        singular = torch.linalg.vector_norm(core, dim=2)
        rows = min(_MOST, max(_FEWEST, int((singular > _LEAST).sum(1).max())))
    outside = block_norms(core[:, rows:], pair.ranks, joint=False).square()
    return SideCores(core[:, :rows].clone(), outside, pair.ranks)


def joint_cores(parts: Sequence[SideCores]) -> SideCores:
    """The cores of all modules, scaled so that a client with a delta weight in every module has
    joint norm one.

    Args:
        parts: cores with the same ranks, in the order of the modules.
    """
    rows = max(part.stack.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(p.stack, (0, 0, 0, rows - p.stack.shape[1])) for p in parts]
    stack, outside = torch.cat(padded), torch.cat([part.outside for part in parts])
    return SideCores(stack / len(stack) ** 0.5, outside / len(stack), parts[0].ranks)


def unit_core(pair: Grams, side: str) -> Tensor:
    """Whole core of the horizontal stack of unit-norm delta weights (`output`) or of their
    transposes (`input`).

    Returns:
        C with C'C the stack's Gram, shape (n_modules, sum_rank, sum_rank), its rows by descending
        singular value; columns of a zero delta weight are zero.
    """
    outer, inner = (pair.B, pair.A) if side == "output" else (pair.A, pair.B)
    return core_from_gram(unit_side(outer, inner, pair)[0])[0]
