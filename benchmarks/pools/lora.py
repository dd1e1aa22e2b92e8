"""LoRA adapters by peft on any base model: made, trained, taken out, and added to the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from benchmarks.pools.settings import Client
from benchmarks.pools.store import Adapter, seeded

PREFIX = "base_model.model."


def with_adapter(
    base: nn.Module, client: Client, seed: int, targets: Sequence[str], previous: Adapter | None
) -> PeftModel:
    """A copy of the base model with the adapter that a client starts from, on ``targets``."""
    setting = client.setting
    name = str(base.name_or_path)
    config = LoraConfig(
        r=setting.rank, lora_alpha=2 * setting.rank, base_model_name_or_path=name,
        target_modules=list(targets),
    )  # fmt: skip
    owner = "all" if setting.same_start else client.name
    start = seeded("start", seed, setting.name, owner)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=start)))
        model = get_peft_model(copy.deepcopy(base), config)
    if previous is not None:
        set_peft_model_state_dict(model, previous[0])
    return model


def fit(model: PeftModel, client: Client, seed: int, losses: Iterator[Tensor]) -> None:
    """Train by Adam at the client's constant rate, one step for each of ``losses``.

    A free rider adds Gaussian noise to every lora_B instead. Its standard deviation is rate times
    the root of the number of steps, as far as a random walk in Adam's steps goes: what a client
    can guess that knows the recipe (Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model
    Aggregation in Federated Learning", AISTATS 2021, arXiv 2006.11901, have the same form).
    """
    if client.kind == "free":
        _add_noise(model, client, seed)
        return
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], client.setting.rate)
    model.train()
    dropout = seeded("dropout", seed, client.setting.name, client.name)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=dropout)))
        for loss in losses:
            if not math.isfinite(loss):
                raise SystemExit(f"training of {client.name} diverged")
            adam.zero_grad()
            loss.backward()
            adam.step()


def _add_noise(model: nn.Module, client: Client, seed: int) -> None:
    """Gaussian noise on every lora_B."""
    generator = seeded("noise", seed, client.setting.name, client.name)
    size = client.setting.rate * client.setting.steps**0.5
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value += size * torch.randn(value.shape, generator=generator)


def adapter_of(model: PeftModel) -> Adapter:
    """The adapter as PEFT's state dict (float32) and configuration."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return {name: value.detach().float().clone() for name, value in state.items()}, config


def with_deltas(base: nn.Module, deltas: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the base model with delta weights added, module as PEFT names it to (out, in)."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, delta in deltas.items():
            model.get_submodule(name.removeprefix(PREFIX)).get_parameter("weight").add_(delta)
    return model
