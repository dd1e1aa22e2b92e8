"""Clients of an init that changed the base, saved by PEFT without conversion, and their merge on
the original base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.cohorts import clair

pytestmark = pytest.mark.loaders  # see tests/conftest.py

MODULES = ("up", "down")


def base_model() -> Any:
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(12, 20), torch.nn.Linear(20, 12)

        def forward(self, x: torch.Tensor) -> Any:
            return self.down(torch.tanh(self.up(x)))

    torch.manual_seed(0)
    return Model()


def effective(model: Any) -> dict[str, Any]:
    """The weights that a trained model computes with: its base's and the delta weights."""
    found = {}
    for name in MODULES:
        layer = getattr(model.base_model.model, name)
        found[name] = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    return found


@pytest.fixture(params=["pissa", "pissa_niter_4", "olora"])
def trained(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The effective weights of five clients that start alike; their adapters are in `clients`, the
    one that they start from in `start`."""
    peft = pytest.importorskip("peft")
    import torch

    monkeypatch.chdir(tmp_path)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(MODULES), init_lora_weights=request.param
    )
    begun = peft.get_peft_model(base_model(), config)
    begun.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    begun.save_pretrained("start")
    begun.peft_config["default"].init_lora_weights = request.param
    g = torch.Generator().manual_seed(1)
    common = {n: torch.randn(p.shape, generator=g) for n, p in begun.named_parameters()
              if p.requires_grad}  # fmt: skip
    found = []
    for k in range(5):
        model = copy.deepcopy(begun)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in common:
                    parameter += 0.02 * (common[name] + torch.randn(parameter.shape, generator=g))
        model.save_pretrained(f"clients/c{k}")
        found.append(effective(model))
    return found


def outputs(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.linspace(-1.0, 1.0, 96).reshape(8, 12))


def with_weights(weights: dict[str, Any]) -> Any:
    model = base_model()
    for name, weight in weights.items():
        getattr(model, name).weight.data = weight
    return outputs(model)


def test_the_merge_on_the_original_base_is_the_mean_of_the_clients(
    trained: list[dict[str, Any]],
) -> None:
    import peft
    import torch

    result = clair("merge", "clients", "-o", "m", "--initial", "start", "--rank", "full",
                   "--dtype", "float32")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    mean = {n: torch.stack([w[n] for w in trained]).mean(0) for n in MODULES}
    loaded = outputs(peft.PeftModel.from_pretrained(base_model(), "m"))
    assert float((loaded - with_weights(mean)).abs().max()) <= 1e-5
    assert float((loaded - outputs(base_model())).abs().max()) > 1e-2


def test_each_refined_adapter_is_for_the_original_base(trained: list[dict[str, Any]]) -> None:
    """Their mean is that of the clients: what refinement averages away in one, it does in all."""
    import peft
    import torch

    result = clair("refine", "clients", "-o", "out", "--initial", "start", "--rank", "full",
                   "--dtype", "float32")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    refined = [
        effective(peft.PeftModel.from_pretrained(base_model(), f"out/c{k}"))
        for k in range(len(trained))
    ]
    for name in MODULES:
        means = [torch.stack([w[name] for w in every]).mean(0) for every in (refined, trained)]
        assert float((means[0] - means[1]).abs().max()) <= 1e-5
        moved = refined[0][name] - refined[1][name]
        assert float(moved.norm()) > 1e-2, "an adapter each"


def test_without_the_start_all_are_rejected(trained: list[dict[str, Any]]) -> None:
    result = clair("merge", "clients", "-o", "m")
    assert result.exit_code == 4 and "--initial" in result.stdout + result.stderr
