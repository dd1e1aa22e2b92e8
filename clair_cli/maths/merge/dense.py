"""The weighted mean of dense tensors, of which no client moves more than it is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def middle(values: Tensor) -> Tensor:
    """The median of some clients' numbers, entry by entry; of an even number of clients, the mean
    of the middle two.

    Args:
        values: (n_clients, n_numbers), finite.

    Returns:
        (n_numbers,).
    """
    ordered, n = values.sort(dim=0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def bounded_mean(
    values: Tensor, weights: Sequence[float], factors: Sequence[float], reference: Tensor
) -> Tensor:
    """The reference plus the weighted mean of the clients' differences from it, each of which
    counts by a factor; where all factors are 1, the weighted mean of the values.

    Args:
        values: (n_clients, n_numbers), float64.
        weights: positive, summing to at most 1; a client that is not among these has a value of 0.
        factors: 0 to 1.
        reference: (n_numbers,), float64.

    Returns:
        (n_numbers,), float64.
    """
    counted = torch.tensor(
        [w * f for w, f in zip(weights, factors, strict=True)], dtype=torch.float64
    )
    mean: Tensor = counted @ values
    if all(factor == 1.0 for factor in factors):
        return mean
    return mean + (math.fsum(weights) - counted.sum()) * reference
