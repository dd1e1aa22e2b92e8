"""Rounds with PEFT's own models: what a server sends loads, and fold adds exactly the merge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

from clair_cli.federated import Server
from tests.federated.clients import MODULES
from tests.federated.peft_clients import Tiny, lora, trained
from tests.federated.recipes import recipe

pytestmark = pytest.mark.loaders

FLIPPED = {"b", "d"}


def test_every_model_loads_what_it_is_sent() -> None:
    """Three rounds of mixed ranks; two clients flip."""
    ranks = {"a": 4, "b": 8, "c": 8, "d": 4, "e": 4, "f": 8}
    server = Server({name: lora(rank) for name, rank in ranks.items()})
    for n in range(3):
        states = {}
        for k, (name, rank) in enumerate(ranks.items()):
            torch.manual_seed(k)
            model = get_peft_model(Tiny(), lora(rank))
            sent = server.adapter_for(name)
            if sent is not None:
                loaded = set_peft_model_state_dict(model, sent)
                assert not loaded.unexpected_keys
                own = get_peft_model_state_dict(model)
                assert own.keys() == sent.keys()
                assert all(torch.equal(own[key], tensor) for key, tensor in sent.items())
            states[name] = trained(model, 10 * n + k, sign=-1.0 if name in FLIPPED else 1.0)
        result = server.aggregate(states)
        left_out = {c.name for c in result.report.clients if c.weight == 0}
        assert (result.outcome, left_out) == ("use", FLIPPED), result.why


def test_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds, weights = iter(range(100)), []

    def train(name: str, base: Tiny) -> dict[str, torch.Tensor]:
        seed = next(seeds)
        torch.manual_seed(seed)
        if len(weights) * 6 == seed:
            weights.append({m: base.get_submodule(m).weight.detach().clone() for m in MODULES})
        model = get_peft_model(copy.deepcopy(base), lora())
        return trained(model, seed, sign=-1.0 if name in FLIPPED else 1.0)

    names: dict[str, Any] = {"lora_config": lora(), "train": train, "base": Tiny()}
    exec(recipe("Fold: everybody starts afresh"), {**names, "clients": "abcdef"}, names)
    result, base = names["result"], names["base"]
    assert {c.name for c in result.report.clients if c.weight == 0} == FLIPPED
    assert isinstance(base, Tiny) and not isinstance(base, PeftModel)
    merged = {m: result.tensors[f"base_model.model.{m}.lora_B.weight"]
              @ result.tensors[f"base_model.model.{m}.lora_A.weight"] for m in MODULES}  # fmt: skip
    scaling = result.config["lora_alpha"] / result.config["r"]
    for m in MODULES:
        moved = base.get_submodule(m).weight.detach() - weights[-1][m]
        assert torch.allclose(moved, scaling * merged[m], atol=1e-5)
