"""Fused experts trained with PEFT's `target_parameters`: merged, and loaded by PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests import cohorts
from tests.cohorts import clair

# peft warns that patterns match no module, and matches parameters by them
pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

TARGETS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
EXPERTS = 4


def base_model(transposed: bool = False) -> Any:
    import torch
    from torch import nn

    class Experts(nn.Module):
        is_transposed = transposed

        def __init__(self) -> None:
            super().__init__()
            up, down = (EXPERTS, 20, 12), (EXPERTS, 12, 10)
            if transposed:
                up, down = (EXPERTS, 12, 20), (EXPERTS, 10, 12)
            self.gate_up_proj = nn.Parameter(torch.randn(up))
            self.down_proj = nn.Parameter(torch.randn(down))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            up, down = self.gate_up_proj, self.down_proj
            if not transposed:
                up, down = up.mT, down.mT
            gate, value = torch.einsum("bi,eio->ebo", x, up).chunk(2, dim=-1)
            return torch.einsum("ebi,eio->ebo", torch.tanh(gate) * value, down).sum(0)

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = nn.Linear(12, 12), Experts()

        def forward(self, x: torch.Tensor) -> Any:
            return self.experts(self.router(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp()

        def forward(self, x: torch.Tensor) -> Any:
            return self.mlp(x)

    torch.manual_seed(0)
    return Model()


def deltas(model: Any) -> dict[str, Any]:
    """The delta weights of both parameters and of the router, by PEFT."""
    found, layer = {}, model.base_model.model.mlp.experts
    while hasattr(layer, "parameter_name"):
        found[layer.parameter_name] = layer.get_delta_weight("default").detach()
        layer = layer.base_layer
    found["router"] = model.base_model.model.mlp.router.get_delta_weight("default").detach()
    return found


@pytest.fixture(params=[False, True], ids=["out in", "in out"])
def trained(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The base, and the delta weights of five clients that share a half, in `clients`. The last
    expert is never trained."""
    peft = pytest.importorskip("peft")
    import torch

    monkeypatch.chdir(tmp_path)
    base = base_model(request.param)
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["router"], target_parameters=TARGETS
    )
    begun = peft.get_peft_model(copy.deepcopy(base), config)
    g = torch.Generator().manual_seed(1)
    shapes = {n: p.shape for n, p in begun.named_parameters() if p.requires_grad}
    common = {n: torch.randn(shape, generator=g) for n, shape in shapes.items()}
    found = []
    for k in range(5):
        model = copy.deepcopy(begun)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in common:
                    value = 0.3 * (common[name] + torch.randn(shapes[name], generator=g))
                    if "lora_B" in name and "experts" in name:
                        value[:, EXPERTS - 1 :: EXPERTS] = 0.0  # PEFT has the expert fastest
                    parameter.copy_(value)
        model.save_pretrained(f"clients/c{k}")
        found.append(deltas(model))
    assert not any(found[0][name][EXPERTS - 1].any() for name in ("down_proj", "gate_up_proj"))
    return base, found


def test_the_merge_is_the_mean_of_what_peft_computes(trained: Any) -> None:
    import peft
    import torch

    base, clients = trained
    result = clair("merge", "clients", "-o", "m", "--rank", "full", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), "m")
    loaded = deltas(model)
    assert loaded.keys() == clients[0].keys()
    for name, delta in loaded.items():
        mean = torch.stack([client[name] for client in clients]).mean(0)
        assert float((delta - mean).abs().max()) <= 1e-5, name
    plain = copy.deepcopy(base)
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            getattr(plain.mlp.experts, name).add_(loaded[name])
        plain.mlp.router.weight.add_(loaded["router"])
        x = torch.linspace(-1.0, 1.0, 96).reshape(8, 12)
        assert torch.allclose(model(x), plain(x), atol=1e-4)
        assert not torch.allclose(model(x), base(x), atol=1e-2)


def test_refined_adapters_load_and_verify_agrees(trained: Any) -> None:
    import peft
    import torch

    base, clients = trained
    result = clair("refine", "clients", "-o", "out", "--rank", "full", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    refined = [
        deltas(peft.PeftModel.from_pretrained(copy.deepcopy(base), f"out/c{k}")) for k in range(5)
    ]
    for name in clients[0]:
        means = [torch.stack([c[name] for c in every]).mean(0) for every in (refined, clients)]
        assert float((means[0] - means[1]).abs().max()) <= 1e-5
    result = clair("verify", "out", "clients")
    assert result.exit_code == 0, result.stdout


def test_each_expert_is_a_module(trained: Any) -> None:
    assert clair("merge", "clients", "-o", "m").exit_code == 0
    report = cohorts.read_report(Path("m/report.json"))
    names = {m["name"] for m in report["modules"]}
    layers = ("mlp.experts", "mlp.experts.base_layer")
    assert names == {f"{layer}[{e}]" for layer in layers for e in range(EXPERTS)} | {"mlp.router"}


OPTIONS = {
    "one parameter": {"target_parameters": ["experts.gate_up_proj"]},
    "ranks": {
        "target_parameters": TARGETS,
        "rank_pattern": {r".*\.experts\.gate_up_proj": 6},
        "alpha_pattern": {"down_proj": 5},
    },
    "rslora": {"target_parameters": TARGETS, "use_rslora": True},
    "a linear layer's weight": {"target_parameters": ["router.weight"]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_config(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    import torch

    monkeypatch.chdir(tmp_path)
    base, found = base_model(), []
    for k in range(3):
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[], **OPTIONS[name])
        model = peft.get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape))
        model.save_pretrained(f"clients/c{k}")
        found.append(of_parameters(model))
        ranks = {m.r["default"] for m in model.modules() if hasattr(m, "parameter_name")}
        assert ranks == ({3, 6} if name == "ranks" else {3})
    result = clair("merge", "clients", "-o", "m", "--rank", "full", "--dtype", "float32",
                   "--allow-undetermined")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    loaded = of_parameters(peft.PeftModel.from_pretrained(copy.deepcopy(base), "m"))
    assert loaded.keys() == found[0].keys() and loaded
    for key, delta in loaded.items():
        mean = torch.stack([client[key] for client in found]).mean(0)
        assert float((delta - mean).norm() / mean.norm()) <= 1e-5, key


def of_parameters(model: Any) -> dict[str, Any]:
    """The delta weights of wrapped parameters, by PEFT."""
    return {
        layer.parameter_name: layer.get_delta_weight("default").detach()
        for layer in model.modules()
        if hasattr(layer, "parameter_name")
    }
