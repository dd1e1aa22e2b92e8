"""The free rider of the pools: noise of a plausible size instead of training."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.pools.settings import Client
from benchmarks.pools.store import seeded


def with_noise(model: nn.Module, client: Client, seed: int) -> None:
    """Add Gaussian noise to every lora_B of the model.

    Its standard deviation is rate times the root of the number of steps, as far as a random walk
    in Adam's steps goes: what a client can guess that knows the recipe and trains nothing
    (Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning",
    AISTATS 2021, arXiv 2006.11901, have the same form).
    """
    generator = seeded("noise", seed, client.setting.name, client.name)
    size = client.setting.rate * client.setting.steps**0.5
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value += size * torch.randn(value.shape, generator=generator)
