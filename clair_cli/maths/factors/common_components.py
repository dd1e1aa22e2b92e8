"""Differences of delta weights: every client's less that of the previous round's adapter.

The rank-one components of the previous adapter are part of every difference. They are stored, and
multiplied, once for all clients.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.factors.stack import CommonComponents, FactorStack


@dataclass(frozen=True)
class Side:
    """One side of a stack: the rows as stored, and which of them each rank-one component uses.

    Attributes:
        rows: lora_A, or lora_B transposed, as stored, (n_modules, n_stored, width).
        common: the stored row of each component; None where component i uses row i.
        by: factor of each component on this side, (n_modules, sum_rank); None for 1.
    """

    rows: Tensor
    common: CommonComponents | None = None
    by: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """Copy values of the stored rows to the components that use them.

        Args:
            values: (n_modules, n_stored, m).

        Returns:
            Shape (n_modules, sum_rank, m), on the device of `values`.
        """
        if self.common is None:
            return values
        found = values.index_select(1, self.common.columns.to(values.device))
        return found if self.by is None else found * self.by.to(found)[:, :, None]

    def gathered(self, values: Tensor) -> Tensor:
        """Add up values of the components in the stored rows that they use: `spread` transposed.

        Args:
            values: (n_modules, sum_rank, m).

        Returns:
            Shape (n_modules, n_stored, m), on the device of `values`.
        """
        if self.common is None:
            return values
        found = values if self.by is None else values * self.by.to(values)[:, :, None]
        empty = values.new_zeros(len(values), self.rows.shape[1], values.shape[2])
        return empty.index_add_(1, self.common.columns.to(values.device), found)

    def spread_square(self, square: Tensor) -> Tensor:
        """The Gram of the components, (n_modules, sum_rank, sum_rank), from that of stored rows."""
        return square if self.common is None else self.spread(self.spread(square).mT).mT


def sides(stack: FactorStack) -> tuple[Side, Side]:
    """The output side, of lora_B, and the input side, of lora_A."""
    common = stack.common
    by = None if common is None else common.by
    return Side(stack.lora_B.mT, common, by), Side(stack.lora_A, common)


def differences_to_last(stack: FactorStack, present: Tensor) -> FactorStack:
    """Subtract the delta weight of a stack's last entry from all others.

    Args:
        stack: of the clients and, as last entry, of the adapter that is subtracted.
        present: whether a client has the module, (n_modules, n_clients); the difference of a client
            that lacks it is zero.

    Returns:
        A stack of the clients whose delta weights are the differences. The components of the last
        entry are stored once, as `common`.
    """
    *own, last = stack.ranks
    ends = [0, *itertools.accumulate(own)]
    factors = stack.lora_A[:, ends[-1] :].mT, stack.lora_B[:, :, ends[-1] :]
    nonzero = [(factor != 0).any(2).any(1).to(stack.scaling.device) for factor in factors]
    # an entry that is zero must not set the scale of the difference
    sizes = stack.scaling[:, :-1]
    before = torch.where(nonzero[0] & nonzero[1], stack.scaling[:, -1], 0.0)[:, None]
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
