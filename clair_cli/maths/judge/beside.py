"""Minorities that show only beside the direction that all training takes.

Clients of few steps have little but that direction in common, so that a set with something of its
own hardly shows in whole delta weights. What pairs share beside it (`Signatures.beside`) may be
next to nothing, or below it, as that direction is taken from the clients themselves. So the clients
outside the set are all given their mean, in place of the loadings of a common factor. Each member
must also share clearly less with those outside than they do among themselves, so that honest
clients whose data overlap, and who are like the others in all else, are no minority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clair_cli.maths.judge.minority import Minority, Search, clearest
from clair_cli.maths.judge.pairs import Pairs
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.thresholds import ERROR_RATE


def find_beside(
    signatures: Signatures, clients: Sequence[int], trusted: Sequence[int] = ()
) -> Minority | None:
    """The clearest minority in what some clients share beside the common direction, or None.

    Args:
        signatures: of all clients.
        clients, trusted: see `find_minority`.
    """

    def search(chosen: Tensor, outside: int, inside: tuple[int, ...]) -> BesideSearch | None:
        own = signatures.of(chosen)
        if own.beside is None:
            return None
        known = torch.isfinite(own.beside)
        value = torch.where(known, own.beside, 0.0)
        pairs = Pairs(value, torch.zeros_like(value), known.to(value.dtype))
        return BesideSearch(pairs, own, outside, inside)

    return clearest(clients, trusted, search)


@dataclass(frozen=True)
class BesideSearch(Search):
    """Sets of clients that may be a minority, by what they share beside the common direction."""

    def _loadings(self, masks: Tensor) -> Tensor:
        """What each client has of what those outside each set share, if they share anything, where
        all of them have the same, (n_sets, n)."""
        outside = 1.0 - masks
        shared = self._level(outside).clamp_min(0.0).sqrt()[:, None]
        theirs = (outside @ self.pairs.value) / (outside @ self.pairs.known).clamp_min(1.0)
        own = (theirs.clamp_min(0.0) / shared.clamp_min(1e-150)).minimum(shared)
        return torch.where(masks > 0, own, shared.expand_as(masks))

    @cached_property
    def _everybody(self) -> Tensor:
        return self.pairs.value.new_zeros(len(self.pairs.value))

    def _excess(self, members: Sequence[int], loadings: Tensor) -> tuple[Tensor, Tensor]:
        excess, outside = super()._excess(members, loadings)
        level = float(self._level(outside.to(excess.dtype)[None]))
        return excess - min(level, 0.0) * self.pairs.known, outside

    def _level(self, outside: Tensor) -> Tensor:
        """Mean value of the pairs of some clients, given as masks (n_sets, n); (n_sets,)."""
        total = ((outside @ self.pairs.value) * outside).sum(1)
        count = ((outside @ self.pairs.known) * outside).sum(1)
        return total / count.clamp_min(1.0)

    def _alone(self, member: int, outside: Tensor) -> float:
        return next(iter(self.signatures.lacks_beside(member, outside)), 1.0)

    def _is_own(self, excess: Tensor, outside: Tensor, members: Sequence[int]) -> bool:
        """Whether every member shares clearly less with those outside than they do."""
        return all(self._alone(k, outside) < ERROR_RATE**0.5 for k in members)
