"""Configs: refused variants, field checks, PEFT's own lookup and scaling."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli.adapters.config import assumed_config, parse_config
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.strict_json import parse_strict
from tests.cohorts import texts
from tests.hostile import client, config, load_cohort

REFUSED = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": "lora"}, "peft_type is 'lora'"),
    ({"use_dora": True}, "not supported: DoRA (use_dora is True)"),
    ({"target_parameters": "w"}, "target_parameters"),
    ({"layer_replication": [[0, 4]]}, "layer replication"),
    ({"kasa_config": {"a": 1}}, "KaSA"),
    ({"alora_invocation_tokens": [5]}, "aLoRA"),
    ({"use_bdlora": {"a": 1}}, "BD-LoRA"),
    ({"use_qalora": True}, "QALoRA"),
    ({"arrow_config": {"a": 1}}, "Arrow"),
    ({"velora_config": {"a": 1}}, "VeLoRA"),
    ({"monteclora_config": {"a": 1}}, "MonteCLoRA"),
    ({"new_trick": "x"}, "unknown field 'new_trick' is 'x'"),
    ({"new_trick": 0.5}, "unknown field 'new_trick'"),
    ({"r": 0}, "r is 0"),
    ({"r": 2.0}, "r is 2.0"),
    ({"r": True}, "r is True"),
    ({"r": None}, "no 'r'"),
    ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    ({"lora_alpha": math.nan}, "lora_alpha is nan"),
    ({"lora_alpha": None}, "no 'lora_alpha'"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ({"rank_pattern": {"q": 0}}, "rank_pattern['q'] is 0"),
    ({"alpha_pattern": {"q": math.inf}}, "alpha_pattern['q'] is inf"),
    ({"alpha_pattern": ["q"]}, "alpha_pattern is ['q']"),
    ({"alpha_pattern": {"(a)\\1": 4}}, "is no regular expression that is read here"),
    ({"alpha_pattern": {"a{2000}": 4}}, "a count above 1,000"),
    ({"alpha_pattern": {"(?i)a": 4}}, "a group that begins with (? is not read"),
    ({"alpha_pattern": {"(" * 20 + ")" * 20: 4}}, "groups more than 16 deep"),
    ({"alpha_pattern": {"q" * 600: 4}}, "has 600 characters"),
    ({"alpha_pattern": {"[z-a]": 4}}, "is no regular expression"),
    ({"target_modules": [1]}, "target_modules is [1]"),
    ({"init_lora_weights": 3}, "init_lora_weights is 3"),
    ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED, ids=[str(f)[:40] for f, _ in REFUSED])
def test_refusals_name_the_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RejectedClient) as caught:
        parse_config(config() | fields)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"config": {"architecture": "lora"}, "model_class": "B"},
            "it has 'config', 'model_class'",
        ),
        ({"base_model": "text"}, "it has 'base_model', and none of peft_type, r and lora_alpha"),
    ],
)
def test_configs_of_other_tools(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RejectedClient) as caught:
        parse_config(fields)
    assert words in caught.value.message and "--assume-alpha" in caught.value.hint
    with pytest.raises(RejectedClient, match="unknown field"):
        parse_config(config() | fields)


def test_unknown_empty_fields_are_harmless() -> None:
    fields = {"f1": None, "f2": False, "f3": [], "f4": {}, "f5": 0, "f6": "", "lora_dropout": 0.1}
    assert parse_config(config() | fields).scaling("q", 2) == 2.0
    plain = {"r": 2, "lora_alpha": -3}
    assert parse_config(plain).scaling("q", 2) == -1.5


def test_biases_that_are_not_in_the_file(folder: Path) -> None:
    """Older PEFT leaves `bias: lora_only` in configs of models whose layers have no bias."""
    client(folder, "bob", fields=config(bias="lora_only"))
    assert load_cohort(folder).rejected == ()


def test_assumed_configs() -> None:
    assert assumed_config("rank").scaling("q", 7) == 1.0
    assert assumed_config(14).scaling("q", 7) == 2.0
    assert assumed_config("rank").rank_for("q") is None
    for bad in (math.nan, math.inf, "ranks", True):
        with pytest.raises(UsageError, match="assumed alpha"):
            assumed_config(bad)


def test_notes_for_zero_alpha_and_changed_bases() -> None:
    assert texts(parse_config(config(lora_alpha=0)).notes) == (
        "lora_alpha is 0: the update is zero",
    )
    for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "future", "eva"):
        parsed = parse_config(config(init_lora_weights=init))
        assert parsed.guarded_init == init
        assert init in texts(parsed.notes)[0]
        assert ("changes the base" in texts(parsed.notes)[0]) == (init != "eva")
    for plain in (True, False, None, "gaussian", "orthogonal", "mica"):
        assert parse_config(config(init_lora_weights=plain)).guarded_init == ""


@pytest.mark.loaders
def test_lookup_agrees_with_peft() -> None:
    other = pytest.importorskip("peft.utils.other")
    keys = [
        "q_proj",
        "layers.0.k_proj",
        "^model.decoder.layers.0.encoder_attn.k_proj",
        r".*\.layers\.(1|2)\.v_proj",
        r"layers\.\d+\.o_proj",
        r"^(?!.*vision).*\.(?:gate|down)_proj",
        r"layers\.\d{2,}\.(self_attn\.(q|k))_norm",
        "mlp.up",
    ]
    patterns = {key: rank for rank, key in enumerate(keys, start=1)}
    parsed = parse_config(config(r=99, rank_pattern=patterns, alpha_pattern=patterns))
    modules = [
        "q_proj",
        "model.layers.0.q_proj",
        "model.layers.0.xq_proj",
        "model.layers.0.k_proj",
        "model.layers.10.k_proj",
        "model.decoder.layers.0.encoder_attn.k_proj",
        "x.model.decoder.layers.0.encoder_attn.k_proj",
        "model.layers.1.v_proj",
        "model.layers.3.v_proj",
        "model.layers.12.o_proj",
        "layers.12.o_proj",
        "mlp_up",
        "a.mlp.up",
    ]
    expected = [patterns.get(other.get_pattern_key(patterns, name), 99) for name in modules]
    assert [parsed.rank_for(name) for name in modules] == expected
    assert len(set(expected)) == 7  # every key and the default was used
    assert [parsed.alpha_for(name, 1) for name in modules] == [
        e if e != 99 else 4 for e in expected
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b" " * 101, "above the limit of 100"),
    ],
)
def test_strict_json(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        parse_strict(data, "config", 100 if len(data) == 101 else 10**6)


@pytest.mark.loaders
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"q": 3}, "alpha_pattern": {"up": 5}},
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "rank_pattern": {"block.up": 2, "q": 5},
            "alpha_pattern": {"^block.q": 1, "q": 30},
        },
        {
            "r": 4,
            "lora_alpha": 6,
            "rank_pattern": {r"(?!.*block).*q": 3, r"block\.(?:(?:u|d)p){1,2}": 5},
            "alpha_pattern": {r"(?<!x)block\.\w{2}": 7},
        },
    ],
    ids=["plain", "rslora", "patterns", "all", "expressions"],
)
def test_scaling_equals_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.ModuleDict(
                {"q": torch.nn.Linear(8, 6), "up": torch.nn.Linear(6, 10)}
            )
            self.q = torch.nn.Linear(10, 3)

    torch.manual_seed(0)
    model = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["q", "up"], **options))
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling")
    }
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "client")
    assert json.loads((tmp_path / "client/adapter_config.json").read_text())["r"] == 4
    cohort = load_cohort(tmp_path)
    assert cohort.rejected == ()
    (adapter,) = cohort.adapters
    assert adapter.prefix == "base_model.model."
    assert sorted(layers) == list(adapter.modules)
    for name, layer in layers.items():
        module = adapter.modules[name]
        assert module.scaling == layer.scaling["default"]
        assert module.rank == layer.r["default"]
        assert module.alpha == layer.lora_alpha["default"]
        lora_A, lora_B = adapter.factors(name)
        delta = (module.scaling * lora_B @ lora_A).float()
        torch.testing.assert_close(delta, layer.get_delta_weight("default"), rtol=1e-6, atol=1e-6)


@pytest.mark.loaders
def test_every_field_of_the_installed_peft_is_known() -> None:
    peft = pytest.importorskip("peft")
    from clair_cli.adapters import variants as ours

    fields = set(peft.LoraConfig().to_dict())
    assert fields - ours._HARMLESS_FIELDS - ours._REFUSED_FIELDS.keys() == set()
