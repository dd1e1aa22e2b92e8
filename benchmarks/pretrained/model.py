"""The BERT of antiberty 0.1.3.

The package's weights are found by its metadata and read; the package is not imported.
"""

from __future__ import annotations

import os
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks.pretrained.data import package_file

WEIGHTS = "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin"
SHA256 = "f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137"
QUERY_VALUE = ("query", "value")
ALL_LINEAR = (
    "query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip


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
