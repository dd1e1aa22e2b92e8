"""The BERT of antiberty 0.1.3 and LoRA adapters on it, made by peft.

The package's weights are found by its metadata and read; the package is not imported.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks.pools.settings import Client
from benchmarks.pools.store import Adapter, seeded
from benchmarks.pretrained.data import package_file

WEIGHTS = "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin"
SHA256 = "f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137"
QUERY_VALUE = ["query", "value"]
ALL_LINEAR = [
    "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense",
]  # fmt: skip


@cache
def base_model() -> nn.Module:
    """The pretrained model: 8 layers, width 512, a vocabulary of 25."""
    weights = torch.load(
        package_file("antiberty", WEIGHTS, SHA256), map_location="cpu", weights_only=True
    )
    config = BertConfig(
        vocab_size=25, hidden_size=512, num_hidden_layers=8, num_attention_heads=8,
        intermediate_size=2048, max_position_embeddings=512,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    found = model.load_state_dict(weights, strict=False)
    if found.missing_keys:
        raise SystemExit(f"weights of antiberty lack {found.missing_keys}")
    model.name_or_path = "antiberty-0.1.3"  # what PEFT writes into the clients' files
    return model.eval()


def with_adapter(client: Client, seed: int, previous: Adapter | None) -> PeftModel:
    """The base model with the adapter that a client starts from."""
    setting = client.setting
    config = LoraConfig(
        r=setting.rank, lora_alpha=2 * setting.rank, base_model_name_or_path="antiberty-0.1.3",
        target_modules=ALL_LINEAR if setting.all_linear else QUERY_VALUE,
    )  # fmt: skip
    owner = "all" if setting.same_start else client.name
    start = seeded("start", seed, setting.name, owner)
    base = copy.deepcopy(base_model())  # before the seed, as making the model draws numbers
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=start)))
        model = get_peft_model(base, config)
    if previous is not None:
        set_peft_model_state_dict(model, previous[0])
    return model


def adapter_of(model: PeftModel) -> Adapter:
    """The adapter as PEFT's state dict (float32) and configuration."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return {name: value.detach().float().clone() for name, value in state.items()}, config


def with_deltas(deltas: Mapping[str, Tensor]) -> nn.Module:
    """The base model with delta weights added, module as PEFT names it to (out, in)."""
    model = copy.deepcopy(base_model())
    with torch.no_grad():
        for name, delta in deltas.items():
            layer = model.get_submodule(name.removeprefix("base_model.model."))
            layer.get_parameter("weight").add_(delta)
    return model
