"""Norms of the clients' delta weights, compared with the size of their rank-one components.

A = [a; a] and B = [s b, -s b + d] make the delta weight d a however large s is: the components
cancel. Every program that multiplies such factors gets a rounding error that grows with s, so the
numbers that a client is judged by need not hold for its part in the merge. A trained adapter's
delta weight is about as large as its components together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import VANISHING, Grams
from clair_cli.maths.factors.stack import client_sums, owners

# Rank-one components cancel where the norm of the delta weight is below this share of the root of
# their summed squares: a reader in float32 is then left with about three of its seven digits.
# Trained adapters have 0.5 and more.
CANCELLING_BELOW = 1e-4


@dataclass(frozen=True)
class OwnSizes:
    """Sizes of the clients' own delta weights D_k and of the previous adapter's, P.

    The delta weights that are compared are D_k - P, which may be small; these are not.

    Attributes:
        norms: Frobenius norm of D_k, (n_modules, n_clients), weight units.
        components: root of the summed squared norms of D_k's rank-one components, likewise.
        previous_norms, previous_components: the same of P, (n_modules,); 0 without one.
    """

    norms: Tensor
    components: Tensor
    previous_norms: Tensor
    previous_components: Tensor

    def cancelling(self, dtype: torch.dtype = torch.float64) -> list[tuple[int, int]]:
        """(module, client) of every delta weight whose components cancel; client -1 is P.

        Args:
            dtype: of the products that the sizes come from.
        """
        least = max(CANCELLING_BELOW, VANISHING[dtype])
        of_clients = (self.norms < least * self.components).nonzero().tolist()
        of_previous = (self.previous_norms < least * self.previous_components).nonzero()
        return [(m, k) for m, k in of_clients] + [(m, -1) for (m,) in of_previous.tolist()]

    def most(self, module: int, ranks: Sequence[int]) -> list[float]:
        """Upper bounds of the norms of the clients' delta weights in one module, weight units. A
        squared norm is a sum of products of entries of two Grams, whose rounding errors stay where
        the products cancel; the bounds include them.

        Args:
            module: its row.
            ranks: numbers of rank-one components of the clients, or more.
        """
        rows = zip(
            self.norms[module].tolist(), self.components[module].tolist(), ranks, strict=True
        )
        eps = torch.finfo(torch.float64).eps
        return [n + 4 * eps * rank * c**2 / n if n > 0 else 0.0 for n, c, rank in rows]

    def share(self, module: int, client: int) -> float:
        """Norm of a delta weight over the size of its components; client -1 is P."""
        norms, sizes = self.norms[module], self.components[module]
        if client < 0:
            norms, sizes = self.previous_norms[module, None], self.previous_components[module, None]
        return float(norms[client] / sizes[client])


def own_sizes(pair: Grams, previous_rank: int = 0) -> OwnSizes:
    """Sizes in a batch of modules; on the CPU.

    Args:
        pair: Grams of the compared delta weights.
        previous_rank: number of P's components, which are the last ones of every client.
    """
    parts = split_ranks(pair.ranks, previous_rank)
    part = owners(parts, pair.B.device)
    inner = pair.B * pair.A
    squares = torch.where(part[:, None] == part, inner, 0.0).sum(2)
    return sizes_of(
        client_sums(squares, parts), client_sums(inner.diagonal(dim1=1, dim2=2), parts), pair.scale
    )


def split_ranks(ranks: Sequence[int], previous_rank: int) -> list[int]:
    """Numbers of components of each client itself and of P in its columns, in turns."""
    return [n for r in ranks for n in (max(0, r - previous_rank), min(r, previous_rank))]


def sizes_of(squares: Tensor, components: Tensor, scale: Tensor) -> OwnSizes:
    """Sizes from squared norms over each client's squared `scale`.

    Args:
        squares: of the norms of D_k and of P in the columns of client k, in turns, as computed,
            (n_modules, 2 * n_clients).
        components: summed squared norms of the components, likewise.
        scale: (n_modules, n_clients).
    """
    own, before = (
        torch.stack([squares[:, i::2], components[:, i::2]]).clamp_min(0.0).sqrt().mul(scale).cpu()
        for i in (0, 1)
    )
    previous = before.amax(2) if before.shape[2] else before.new_zeros(before.shape[:2])
    return OwnSizes(own[0], own[1], previous[0], previous[1])


def size_alone(lora_A: Tensor, lora_B: Tensor, scaling: float) -> tuple[float, float]:
    """Norm of one delta weight, and root of its components' summed squared norms, weight units.

    Args:
        lora_A: (rank, in_features).
        lora_B: (out_features, rank).
    """
    A, B = lora_A.double(), lora_B.double()
    inner = (A @ A.mT) * (B.mT @ B)
    norm, components = float(inner.sum()), float(inner.diagonal().sum())
    return abs(scaling) * max(0.0, norm) ** 0.5, abs(scaling) * components**0.5


def concatenate_sizes(parts: Sequence[OwnSizes], order: Sequence[int]) -> OwnSizes:
    """Join batches, then put the modules into the given order.

    Args:
        order: row in the joined batches of each module of the result.
    """
    index = torch.tensor(list(order))
    names = [field.name for field in fields(OwnSizes)]
    return OwnSizes(*(torch.cat([getattr(part, n) for part in parts])[index] for n in names))
