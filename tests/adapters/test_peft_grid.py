"""Adapters that peft itself makes and saves: read, merged and given back to peft.

For every option of LoraConfig that changes an update, the delta weights are compared with
`get_delta_weight`, as read and as PeftModel loads them from what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import clair_cli
from clair_cli.adapters.adapter import Adapter
from tests.cohorts import texts
from tests.hostile import load_cohort

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# peft warns of what it is asked to do here
pytestmark = [pytest.mark.loaders, pytest.mark.filterwarnings("ignore")]

EPS = 1e-6
Deltas = dict[str, torch.Tensor]


class Layers(torch.nn.Module):
    """One layer of each kind that peft adapts; no square weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = torch.nn.ModuleDict(
            {"q": torch.nn.Linear(12, 10), "up": torch.nn.Linear(10, 14, bias=False)}
        )
        self.q = torch.nn.Linear(14, 9)
        self.emb = torch.nn.Embedding(23, 12)
        self.c1 = torch.nn.Conv1d(8, 10, 3, padding=1)
        self.c2 = torch.nn.Conv2d(8, 10, (3, 5), stride=2)
        self.c11 = torch.nn.Conv2d(8, 10, 1)
        self.c3 = torch.nn.Conv3d(8, 9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Conv1Ds(torch.nn.Module):
    """GPT-2's layer, whose weight is stored as (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = transformers.pytorch_utils.Conv1D(10, 12)
        self.mlp = transformers.pytorch_utils.Conv1D(9, 10)


ALL = ["q", "up", "emb", "c1", "c2", "c11", "c3"]
LINEAR = ["q", "up"]
CHANGING = ("pissa", "olora", "corda", "lora_ga", "loftq")  # inits that change the base
GRID: dict[str, tuple[type[torch.nn.Module], dict[str, Any]]] = {
    "plain": (Layers, {"target_modules": ALL, "r": 4, "lora_alpha": 4}),
    "alpha": (Layers, {"target_modules": ALL, "r": 3, "lora_alpha": 7}),
    "rank one": (Layers, {"target_modules": ALL, "r": 1, "lora_alpha": 16}),
    "fraction": (Layers, {"target_modules": ALL, "r": 4, "lora_alpha": 0.5}),
    "negative": (Layers, {"target_modules": LINEAR, "r": 4, "lora_alpha": -3}),
    "rslora": (Layers, {"target_modules": ALL, "r": 4, "lora_alpha": 6, "use_rslora": True}),
    "patterns": (
        Layers,
        {
            "target_modules": ALL,
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {"emb": 2, "c2": 3, "^block.q": 5},
            "alpha_pattern": {"emb": 3, "c1": 5, "block.*": 11},
        },
    ),
    "patterns and rslora": (
        Layers,
        {
            "target_modules": ALL,
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "rank_pattern": {"emb": 2, "c11": 3, "q": 5},
            "alpha_pattern": {"c3": 3, "^q": 9},
        },
    ),
    "regular expression": (Layers, {"target_modules": r"block\..*|c\d+", "r": 4, "lora_alpha": 6}),
    "all linear": (Layers, {"target_modules": LINEAR, "exclude_modules": ["block.up"], "r": 4}),
    "dropout": (Layers, {"target_modules": LINEAR, "r": 4, "lora_dropout": 0.3}),
    "fan in": (Conv1Ds, {"target_modules": ["attn", "mlp"], "r": 4, "fan_in_fan_out": True}),
    **{
        f"init {init}": (Layers, {"target_modules": ALL, "r": 4, "init_lora_weights": init})
        for init in (False, "gaussian")
    },
    **{
        f"init {init}": (Layers, {"target_modules": LINEAR, "r": 4, "init_lora_weights": init})
        for init in ("orthogonal", "pissa", "pissa_niter_4", "olora", "eva", "mica")
    },
}


def make(model: torch.nn.Module, fields: Mapping[str, Any], seed: int = 1) -> Any:
    """peft's model with factors that are not zero."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**fields))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.3 * noise.to(parameter.dtype)
    return wrapped


def theirs(model: Any, adapter: str = "default") -> Deltas:
    """peft's own delta weights by module."""
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight(adapter).detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def ours(adapter: Adapter) -> Deltas:
    """The delta weights as read here, in the shape of the layers' weights."""
    result = {}
    for name, module in adapter.modules.items():
        lora_A, lora_B = adapter.factors(name)
        delta = module.scaling * (lora_B @ lora_A)
        assert delta.shape == module.shape
        if module.layout.kind == "embedding" or adapter.config.fan_in_fan_out:
            delta = delta.T
        result[name] = delta if adapter.config.fan_in_fan_out else delta.reshape(
            module.layout.weight
        )  # fmt: skip
    return result


def worst(found: Deltas, wanted: Deltas) -> float:
    """Largest relative error of a module."""
    assert found.keys() == wanted.keys()
    assert {n: d.shape for n, d in found.items()} == {n: d.shape for n, d in wanted.items()}
    return max(float((found[n] - d).norm() / d.norm()) for n, d in wanted.items())


@pytest.mark.parametrize("case", GRID)
def test_delta_weights_equal_pefts(tmp_path: Path, case: str) -> None:
    kind, fields = GRID[case]
    model = make(kind(), fields)
    wanted = theirs(model)
    model.save_pretrained(tmp_path / "clients" / "one")
    cohort = load_cohort(tmp_path / "clients")
    assert cohort.rejected == ()
    (adapter,) = cohort.adapters
    assert worst(ours(adapter), wanted) <= EPS
    options: dict[str, Any] = {"rank": "full", "allow_undetermined": True}
    if adapter.config.guarded_init in (*CHANGING, "pissa_niter_4"):  # from a start of zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.data.zero_()
        model.save_pretrained(tmp_path / "start")
        options["initial"] = tmp_path / "start"
    clair_cli.merge(tmp_path / "clients", tmp_path / "merged", **options)
    loaded = peft.PeftModel.from_pretrained(kind(), tmp_path / "merged")
    assert worst(theirs(loaded), wanted) <= EPS


@pytest.mark.parametrize("case", ["plain", "fan in"])
def test_half_precision_and_other_adapter_names(tmp_path: Path, case: str) -> None:
    kind, fields = GRID[case]
    model = make(kind().bfloat16(), fields)
    model.add_adapter("other", peft.LoraConfig(**fields))
    model.save_pretrained(tmp_path / "clients" / "one", selected_adapters=["other"])
    assert (tmp_path / "clients/one/other/adapter_model.safetensors").exists()
    (adapter,) = load_cohort(tmp_path / "clients").adapters
    assert "sub-folder 'other'" in texts(adapter.notes)[0]
    (dtype,) = {module.dtype for module in adapter.modules.values()}
    assert dtype in ("bfloat16", "float32")  # peft casts bfloat16 adapters up unless told not to


def test_a_state_dict_in_memory(tmp_path: Path) -> None:
    """The dump of a whole model, which still has the adapter's name and its base weights."""
    fields = GRID["plain"][1]
    model = make(Layers(), {**fields, "target_modules": ["emb", "c2"]})
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "lora_" in name or name.endswith("emb.base_layer.weight")
    }
    config = model.peft_config["default"]
    result = clair_cli.merge({"c": (state, config)}, rank="full", allow_undetermined=True)
    assert result.tensors is not None
    key = "base_model.model.emb.base_layer.weight"
    assert torch.equal(result.tensors[key], state[key])
    assert any(
        "'emb.base_layer.weight') are the same in" in t for t in texts(result.report.warnings)
    )
    stem = "base_model.model.emb.lora_embedding_"
    delta = (result.tensors[f"{stem}B"] @ result.tensors[f"{stem}A"]).T
    assert worst({"emb": delta}, {"emb": theirs(model)["emb"]}) <= EPS


class Chain(torch.nn.Module):
    """Linear layers that data runs through, for the inits that look at data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = torch.nn.ModuleDict(
            {"q": torch.nn.Linear(12, 10), "up": torch.nn.Linear(10, 14, bias=False)}
        )
        self.q = torch.nn.Linear(14, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.q(self.block["up"](torch.tanh(self.block["q"](x))))
        return found


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    scales = torch.logspace(0, 2, 12)  # some directions matter more, so that EVA moves ranks
    return [torch.randn(64, 12, generator=generator) * scales for _ in range(4)]


def config_of(init: str, **more: Any) -> Any:
    fields = {"target_modules": LINEAR, "r": 4, "lora_alpha": 6}
    return peft.LoraConfig(init_lora_weights=init, **fields, **more)


def corda(method: str, **more: Any) -> Any:
    from peft.tuners.lora.corda import preprocess_corda

    model, config = Chain(), config_of(
        "corda", corda_config=peft.tuners.lora.config.CordaConfig(corda_method=method), **more
    )  # fmt: skip
    preprocess_corda(model, config, run_model=lambda: [model(x) for x in batches()])
    return peft.get_peft_model(model, config)


def lora_ga(**more: Any) -> Any:
    from peft.tuners.lora.loraga import preprocess_loraga

    model = Chain()
    config = config_of("lora_ga", lora_ga_config=peft.tuners.lora.config.LoraGAConfig(), **more)
    preprocess_loraga(model, config, lambda: model(batches()[0]).square().mean().backward())
    return peft.get_peft_model(model, config)


def loftq(monkeypatch: pytest.MonkeyPatch) -> Any:
    """peft's own quantisers are bitsandbytes' and run on a GPU only; rounding to 16 levels takes
    their place. The rest of the init, the factors and the config, is peft's."""

    def rounded(weight: torch.Tensor, num_bits: int, reduced_rank: int, num_iter: int) -> Any:
        step = weight.abs().max() / 2 ** (num_bits - 1)
        quantised = (weight.detach() / step).round() * step
        found = peft.utils.loftq_utils._low_rank_decomposition(
            weight.detach() - quantised, reduced_rank=reduced_rank
        )
        return quantised, found["R"], found["L"]

    monkeypatch.setattr(peft.tuners.lora.layer, "loftq_init", rounded)
    config = config_of("loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    return peft.get_peft_model(Chain(), config)


def eva(**more: Any) -> Any:
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    sub = peft.tuners.lora.config.EvaConfig(rho=2.0, tau=0.5)
    model = peft.get_peft_model(Chain(), config_of("eva", eva_config=sub, **more))
    initialize_lora_eva_weights(
        model,
        batches(),
        forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda x, model_input, name: x[0] if isinstance(x, tuple) else x,
        show_progress_bar=False,
    )
    return model


FROM_DATA: dict[str, tuple[str, Any]] = {
    "corda ipm": ("corda", lambda _: corda("ipm")),
    "corda kpm": ("corda", lambda _: corda("kpm", rank_pattern={"up": 3})),
    "lora ga": ("lora_ga", lambda _: lora_ga()),
    "lora ga and rslora": ("lora_ga", lambda _: lora_ga(use_rslora=True)),
    "loftq": ("loftq", loftq),
    "eva": ("eva", lambda _: eva()),
    "eva and patterns": ("eva", lambda _: eva(alpha_pattern={"block.q": 5}, use_rslora=True)),
}


@pytest.mark.parametrize("case", FROM_DATA)
def test_inits_that_peft_makes_from_weights_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The adapter that peft makes, after some training, as read and as written and loaded: what the
    training added where the init changed the base."""
    init, make_model = FROM_DATA[case]
    model = make_model(monkeypatch)
    start = theirs(model)
    options: dict[str, Any] = {"rank": "full", "allow_undetermined": True}
    if init in CHANGING:
        assert any(float(delta.norm()) > 0 for delta in start.values())
        model.save_pretrained(tmp_path / "start")
        options["initial"] = tmp_path / "start"
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for x in batches():
        optimiser.zero_grad()
        model(x / x.norm()).square().sum().backward()
        optimiser.step()
    wanted = theirs(model)
    model.save_pretrained(tmp_path / "clients" / "one")
    (adapter,) = load_cohort(tmp_path / "clients").adapters
    assert adapter.config.guarded_init == init
    assert worst(ours(adapter), wanted) <= EPS
    if init == "eva":  # the ranks were moved
        assert len({module.rank for module in adapter.modules.values()}) > 1
    result = clair_cli.merge(tmp_path / "clients", tmp_path / "merged", **options)
    said = f"all clients used init_lora_weights '{init}'"
    assert any(said in w for w in texts(result.report.warnings)) == (init not in CHANGING)
    loaded = theirs(peft.PeftModel.from_pretrained(Chain(), tmp_path / "merged"))
    for name, delta in wanted.items():
        added = delta - start[name] if init in CHANGING else delta
        # what a little training adds is small beside the start, which has float32's errors
        assert float((loaded[name] - added).norm()) <= EPS * float(delta.norm())
    assert loaded.keys() == wanted.keys()


def test_grouped_convolutions_are_refused(tmp_path: Path) -> None:
    class Grouped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = torch.nn.Conv2d(8, 12, 3, groups=2)

    make(Grouped(), {"target_modules": ["c"], "r": 4}).save_pretrained(tmp_path / "c" / "one")
    (rejected,) = load_cohort(tmp_path / "c").rejected
    assert "module 'c': a grouped convolution (2 groups) is not supported" in rejected.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"kasa_config": "KasaConfig"}, "KaSA"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_is_not_plain_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    if "kasa_config" in fields:
        fields = {"kasa_config": getattr(peft.tuners.lora.config, fields["kasa_config"])()}
    make(Layers(), {"target_modules": LINEAR, "r": 4, **fields}).save_pretrained(
        tmp_path / "clients" / "one"
    )
    (rejected,) = load_cohort(tmp_path / "clients").rejected
    assert words in rejected.message


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_pefts_loha_and_lokr_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    config = getattr(peft, f"{kind}Config")(target_modules=LINEAR, r=4)
    peft.get_peft_model(Layers(), config).save_pretrained(tmp_path / "clients" / "one")
    (rejected,) = load_cohort(tmp_path / "clients").rejected
    assert f"peft_type is '{kind.upper()}'" in rejected.message
