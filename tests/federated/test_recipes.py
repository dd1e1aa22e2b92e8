"""The recipes of docs/federated.md that need no framework."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clair_cli.federated import Server
from tests.federated.clients import State, config, loss, trained
from tests.federated.recipes import PAGE, recipe


def test_each_recipe_of_the_page_is_run_by_a_test() -> None:
    """Flower's in test_flower.py, NVFlare's in test_nvflare.py, fold in test_peft_rounds.py."""
    blocks = PAGE.read_text(encoding="utf-8").count("```python")
    titles = ("Any server", "Flower", "NVFlare", "APPFL", "Fold: everybody starts afresh")
    assert blocks == len({recipe(title) for title in titles})
    here = Path(__file__).parent
    run = "".join(path.read_text(encoding="utf-8") for path in here.glob("*.py"))
    assert all(f'exec(recipe("{title}")' in run for title in titles)


def test_any_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = iter(range(100))

    def train(client: str, start: State | None) -> State:
        return trained(start, next(seeds), sign=-1.0 if client in "bd" else 1.0)

    names: dict[str, Any] = {"lora_config": config(), "train": train, "clients": "abcdef"}
    names["samples"] = dict(zip("abcdef", range(100, 106), strict=True))
    exec(recipe("Any server"), names)
    server = Server.load(tmp_path / "server.safetensors")
    for record in server.history:
        assert {name for name, share in record.weights.items() if share == 0} == {"b", "d"}
    sent = server.adapter_for("a")
    assert sent is not None and loss(sent) < 0.2


def test_appfl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base class does nothing but keep sample sizes."""
    appfl, omegaconf = types.ModuleType("appfl.algorithm.aggregator"), types.ModuleType("omegaconf")
    vars(appfl)["BaseAggregator"] = object
    vars(omegaconf)["OmegaConf"] = types.SimpleNamespace(to_container=dict)
    monkeypatch.setitem(sys.modules, "appfl.algorithm.aggregator", appfl)
    monkeypatch.setitem(sys.modules, "omegaconf", omegaconf)
    names: dict[str, Any] = {}
    exec(recipe("APPFL"), names)
    aggregator = names["ClairAggregator"](aggregator_configs={"lora_config": config()})
    assert aggregator.get_parameters() == {}
    for n in range(2):
        start = aggregator.get_parameters() or None
        states = {
            f"c{k}": trained(start, 10 * n + k, sign=-1.0 if k in (3, 5) else 1.0) for k in range(6)
        }
        state = aggregator.aggregate(states)
    assert aggregator.get_parameters() is state and loss(state) < 0.3
    assert aggregator.aggregate({"c0": {}}) is state
    assert all(isinstance(array, np.ndarray) for array in state.values())
