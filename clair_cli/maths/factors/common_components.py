"""Updates that share some of their rank-one terms: those of the previous round's adapter, which is
taken off every client's. The terms are stored, and multiplied, once for all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.factors.stack import CommonComponents, FactorStack


@dataclass(frozen=True)
class Side:
    """One side of a stack, and how the updates' terms are made of those that are stored.

    Attributes:
        rows: lora_A, or lora_B transposed, as stored, (n_modules, n_stored, width).
        common: None where every stored term is one of the updates'.
        by: what each of the updates' terms counts on this side, (n_modules, sum_rank); None for 1.
    """

    rows: Tensor
    common: CommonComponents | None = None
    by: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """From the stored terms, (n_modules, n_stored, m), to the updates', (n_modules, sum_rank,
        m), where the values are."""
        if self.common is None:
            return values
        found = values.index_select(1, self.common.columns.to(values.device))
        return found if self.by is None else found * self.by.to(found)[:, :, None]

    def gathered(self, values: Tensor) -> Tensor:
        """The transpose of `spread`: what the updates' terms, (n_modules, sum_rank, m), amount to
        in the stored ones, (n_modules, n_stored, m)."""
        if self.common is None:
            return values
        found = values if self.by is None else values * self.by.to(values)[:, :, None]
        empty = values.new_zeros(len(values), self.rows.shape[1], values.shape[2])
        return empty.index_add_(1, self.common.columns.to(values.device), found)

    def spread_square(self, square: Tensor) -> Tensor:
        """From a Gram of the stored terms to the updates'."""
        return square if self.common is None else self.spread(self.spread(square).mT).mT


def sides(stack: FactorStack) -> tuple[Side, Side]:
    """The output side, of lora_B, and the input side, of lora_A."""
    common = stack.common
    by = None if common is None else common.by
    return Side(stack.lora_B.mT, common, by), Side(stack.lora_A, common)


def differences_to_last(stack: FactorStack, present: Tensor) -> FactorStack:
    """Every client's delta weight less the last one's.

    Args:
        stack: of the clients and, as one more, of what is subtracted.
        present: whether the update of a client is to be, (n_modules, n_clients); else it is zero.
    """
    *own, last = stack.ranks
    ends = [0, *itertools.accumulate(own)]
    factors = stack.lora_A[:, ends[-1] :].mT, stack.lora_B[:, :, ends[-1] :]
    there = [(factor != 0).any(2).any(1).to(stack.scaling.device) for factor in factors]
    # what is zero has no scale that the others could be small beside
    sizes = stack.scaling[:, :-1]
    before = torch.where(there[0] & there[1], stack.scaling[:, -1], 0.0)[:, None]
    unit = torch.maximum(sizes.abs(), before.abs())
    own_by, common_by = (by / torch.where(unit > 0, unit, 1.0) for by in (sizes, -before))
    columns: list[int] = []
    by: list[Tensor] = []
    for k, rank in enumerate(own):
        more = last if rank else 0
        columns += [*range(ends[k], ends[k + 1]), *range(ends[-1], ends[-1] + more)]
        by += [own_by[:, k : k + 1].expand(-1, rank), common_by[:, k : k + 1].expand(-1, more)]
    common = CommonComponents(last, torch.tensor(columns, dtype=torch.long), torch.cat(by, dim=1))
    return replace(
        stack,
        scaling=torch.where(present, unit, 0.0),
        ranks=tuple(rank + last if rank else 0 for rank in own),
        common=common,
    )
