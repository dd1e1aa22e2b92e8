"""A tiny model of PEFT's that clients train, and how they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict

from tests.federated.clients import MODULES, task


class Tiny(torch.nn.Module):
    """Linear layers side by side, each from its own input."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, (out, in_) in MODULES.items():
            layer = torch.nn.Linear(in_, out, bias=False)
            torch.nn.init.normal_(layer.weight, std=0.1, generator=generator)
            block, _, own = name.partition(".")
            if block not in dict(self.named_children()):
                self.add_module(block, torch.nn.Module())
            self.get_submodule(block).add_module(own, layer)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self.get_submodule(name)(inputs[name]) for name in MODULES}


def lora(rank: int = 4) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q", "up", "down"])


def trained(model: Any, seed: int, *, sign: float = 1.0) -> dict[str, torch.Tensor]:
    """A PEFT model's state dict after steps that add 0.3 x the task and something of its own; an
    attacker trains towards the opposite. (Flipped changes of A and B are no flipped update where A
    moves far: the two signs cancel.)"""
    g = np.random.default_rng([5, seed])
    inputs = {name: torch.eye(in_) for name, (_, in_) in MODULES.items()}
    goals = {name: found.detach().T for name, found in model(inputs).items()}
    for name, (out, in_) in MODULES.items():
        own = g.normal(size=(out, 1)) @ g.normal(size=(1, in_))
        goals[name] = goals[name] + torch.from_numpy(sign * 0.3 * (task()[name] + own)).float()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        found = model(inputs)
        sum(((found[n].T - goals[n]) ** 2).sum() for n in MODULES).backward()  # type: ignore[union-attr]
        optimiser.step()
    return {key: t.detach().clone() for key, t in get_peft_model_state_dict(model).items()}
