"""The average of LoRA factors, which is not the average of what they do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from benchmarks.copying.cohorts import Member


def scale(config: Mapping[str, Any]) -> float:
    """Scale of a client's products: lora_alpha / r, with rsLoRA lora_alpha / sqrt(r)."""
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return float(config["lora_alpha"] / root)


def stacked_factors(members: Sequence[Member]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of all clients by module: scaled B (K, out, r) and A (K, r, in), float64.

    r is the largest rank; smaller ones are padded with zeros, which leaves B A as it is. The
    scale goes into B, so that clients of different scale are averaged by what they do.
    """
    result = {}
    for name in sorted(members[0][1]):
        if not name.endswith(".lora_A.weight"):
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        rank = max(len(state[name]) for _, state, _, _ in members)
        first, second = [], []
        for _, state, config, _ in members:
            missing = rank - len(state[name])
            first.append(pad(state[name].double(), (0, 0, 0, missing)))
            second.append(pad(scale(config) * state[other].double(), (0, missing)))
        result[name.removesuffix(".lora_A.weight")] = (torch.stack(second), torch.stack(first))
    return result


def factor_mean(members: Sequence[Member]) -> dict[str, Tensor]:
    """Mean of B times mean of A, module to (out, in): what most federated LoRA code does.

    Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (FedIT),
    arXiv 2305.05644. The product holds every B_i A_j, not only the clients' own B_i A_i; clients
    that start from their own lora_A lose nearly everything (about 1 / K of it remains).
    """
    parts = stacked_factors(members)
    return {name: b.mean(0) @ a.mean(0) for name, (b, a) in parts.items()}
