"""The merged delta weight of one module: a weighted mean, exact as a stack of factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.factors.stack import Factors

# Ranks that serving engines accept for a LoRA adapter.
SERVING_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def weighted_sum(
    clients: Sequence[Factors], weights: Sequence[float], shape: tuple[int, int]
) -> Product:
    """sum_k weights[k] * scaling_k * B_k @ A_k, as one product of stacked factors.

    Args:
        clients: `(lora_A, lora_B, scaling)` or None (a zero delta weight), in a fixed order.
        weights: one finite number per client; a client of weight 0 is left out.
        shape: (out_features, in_features).

    Returns:
        Float64 factors, each rank-one component split evenly between the two, so that nothing
        overflows and nothing is lost to a client's gauge.
    """
    used = [
        (*factors[:2], weight * factors[2])
        for factors, weight in zip(clients, weights, strict=True)
        if factors is not None and weight != 0.0 and factors[2] != 0.0
    ]
    if not used:
        none = torch.zeros(sum(shape), 0, dtype=torch.float64)
        return Product(none[: shape[0]], none[shape[0] :].mT)
    lora_A = torch.cat([A for A, _, _ in used]).double()
    lora_B = torch.cat([B for _, B, _ in used], dim=1).double()
    scale = torch.tensor([by for A, _, by in used for _ in range(len(A))], dtype=torch.float64)
    norm_A = torch.linalg.vector_norm(lora_A, dim=1)
    norm_B = torch.linalg.vector_norm(lora_B, dim=0)
    alive = (norm_A > 0) & (norm_B > 0)
    if not bool(alive.all()):
        lora_A, lora_B = lora_A[alive], lora_B[:, alive]
    balance = (norm_A[alive] / norm_B[alive]).sqrt()
    return Product(lora_B.mul_(balance * scale[alive]), lora_A.div_(balance[:, None]))


def plain_distance(
    inner: Tensor, weights: Sequence[float], plain_weights: Sequence[float]
) -> tuple[float, float]:
    """Distance of one module's merged delta weight to the plain mean of all comparable clients,
    and norm of that plain mean; both in weight units.

    Args:
        inner: inner products of the delta weights of one module, (n_clients, n_clients).
        weights: of the clients in the merged delta weight.
        plain_weights: of the clients in the plain mean.
    """
    plain = torch.tensor(plain_weights, dtype=inner.dtype)
    difference = torch.tensor(weights, dtype=inner.dtype) - plain
    squares = [float(w @ inner @ w) for w in (difference, plain)]
    return max(0.0, squares[0]) ** 0.5, max(0.0, squares[1]) ** 0.5


def choose_rank(
    errors: Mapping[int, float], error_target: float, largest: int = SERVING_RANKS[-1]
) -> tuple[int, bool]:
    """The smallest serving rank whose error is at most the target.

    Args:
        errors: relative error of the whole adapter at each serving rank.
        error_target: at least 0.
        largest: the rank to take where no error is small enough.

    Returns:
        The rank, and whether its error misses the target.
    """
    for rank in sorted(errors):
        if errors[rank] <= error_target:
            return rank, False
    return largest, True
