"""Canonical bytes, merged configs, adapters in memory, the weights file."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from clair_cli.adapters.write import _targeted, config_json, merged_config, safetensors_bytes
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.weights import read_weights
from clair_cli.errors import InputRefused, RejectedClient, UsageError
from tests.hostile import PREFIX, client, config, load_cohort, pair


def test_bytes_are_canonical_and_readable() -> None:
    tensors = {
        "b": torch.randn(3, 2).t(),  # not contiguous
        "a": torch.randn(3).half(),
        "ü": torch.randn(2, 2, dtype=torch.float64),
        "c": torch.randn(5).bfloat16(),
    }
    metadata = {str(i): str(i) for i in range(10)}
    data = safetensors_bytes(tensors, metadata)
    shuffled = dict(reversed(tensors.items()))
    assert safetensors_bytes(shuffled, dict(reversed(metadata.items()))) == data
    assert struct.unpack("<Q", data[:8])[0] % 8 == 0
    loaded = safetensors.torch.load(data)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match=r"dtype torch\.int8"):
        safetensors_bytes({"a": torch.arange(3, dtype=torch.int8)}, {})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((None, config()), "NoneType is no state dict"),
        (([torch.ones(2)], config()), "list is no state dict"),
        (({**pair("m.q"), 1: torch.ones(2)}, config()), "tensor name 1 is not a name"),
        ((pair("m.q"), config(lora_alpha=10**400)), "expected a finite number"),
        ((pair("m.q"), config(r=10**5000)), "can't be written as JSON"),
        ((pair("m.q"), config(lora_alpha=10**5000)), "expected a finite number"),
        ((pair("m.q"), config(alpha_pattern={"q": 10**400})), "expected a finite number"),
        ((pair("m.q"), config(foo=torch.ones(2))), "adapter config can't be read"),
        ((pair("m.q"),), "not a pair of state dict and config"),
        (pair("m.q"), "not a pair of state dict and config"),
    ],
)
def test_a_bad_client_in_memory_is_a_rejection(bad: Any, words: str) -> None:
    good = (pair("m.q"), config())
    cohort = adapters_from_memory({"bad": bad, "good": good})
    assert [adapter.name for adapter in cohort.adapters] == ["good"]
    assert words in cohort.rejected[0].message


@pytest.mark.parametrize(("with_flag", "written"), [(1, False), (2, True)])
def test_the_flag_written_is_that_of_most_clients(with_flag: int, written: bool) -> None:
    """An assumed config knows nothing of `fan_in_fan_out`, and counts as one without it."""
    kohya = {"m.q.lora_down.weight": torch.ones(2, 8), "m.q.lora_up.weight": torch.ones(6, 2)}
    clients = {
        f"c{i}": (pair("m.q"), config(fan_in_fan_out=True)) if i < with_flag else (kohya, None)
        for i in range(3)
    }
    found = adapters_from_memory(clients).adapters
    assert merged_config(found, ["m.q"], 2, 2.0)["fan_in_fan_out"] is written


def test_written_adapters_are_read_back(tmp_path: Path) -> None:
    key_A, key_B = f"{PREFIX}m.q.lora_A.weight", f"{PREFIX}m.q.lora_B.weight"
    tensors = {key_A: torch.randn(3, 8), key_B: torch.randn(6, 3)}
    client(tmp_path, "one", tensors, config(r=3, lora_alpha=3))
    (adapter,) = load_cohort(tmp_path).adapters
    lora_A, lora_B = adapter.factors("m.q")
    assert torch.equal(lora_A, tensors[key_A])
    assert torch.equal(lora_B, tensors[key_B])
    assert adapter.modules["m.q"].scaling == 1.0


def adapters(*fields: dict[str, Any], modules: tuple[str, ...] = ("l.0.q", "l.0.k")) -> Any:
    state: dict[str, torch.Tensor] = {}
    for module in modules:
        state |= pair(module)
    clients = {f"c{i}": (state, config(**more)) for i, more in enumerate(fields)}
    return adapters_from_memory(clients).adapters


MODULES = ["l.0.q", "l.0.k"]


def test_merged_config_keeps_what_clients_agree_on() -> None:
    common = {
        "base_model_name_or_path": "org/base",
        "task_type": "CAUSAL_LM",
        "target_modules": ["q", "k"],
        "use_rslora": True,
        "rank_pattern": {"none": 3},
        "lora_dropout": 0.1,
        "auto_mapping": {"base_model_class": "M", "parent_library": "m"},
    }
    found = adapters(common, common, common | {"lora_dropout": 0.2})
    merged = merged_config(found, MODULES, 6, 6.0)
    assert merged == merged_config(found[::-1], MODULES[::-1], 6, 6.0)
    assert merged["target_modules"] == ["k", "q"]
    assert (merged["r"], merged["lora_alpha"], merged["lora_dropout"]) == (6, 6, 0.1)
    assert isinstance(merged["lora_alpha"], int)
    assert (merged["use_rslora"], merged["rank_pattern"], merged["bias"]) == (False, {}, "none")
    assert merged["base_model_name_or_path"] == "org/base"
    assert merged["auto_mapping"] == common["auto_mapping"]
    assert config_json(merged) == config_json(dict(reversed(merged.items())))
    assert config_json(merged).endswith("}\n")
    assert merged_config(found, MODULES, 6, 1.5)["lora_alpha"] == 1.5
    odd = common | {"auto_mapping": MAPPING | {"unsloth_fixed": True}}
    assert merged_config(adapters(odd), MODULES, 6, 6.0)["auto_mapping"] == MAPPING
    odd = common | {"auto_mapping": MAPPING | {"base_model_class": 1}}
    assert merged_config(adapters(odd), MODULES, 6, 6.0)["auto_mapping"] is None
    other = adapters(common, common | {"auto_mapping": None})
    assert merged_config(other, MODULES, 6, 6.0)["auto_mapping"] is None


MAPPING = {"base_model_class": "M", "parent_library": "m"}
FIELDS = [
    ("base_model_name_or_path", "org/base", None),
    ("revision", "main", None),
    ("task_type", "CAUSAL_LM", None),
    ("auto_mapping", MAPPING, None),
    ("lora_dropout", 0.5, 0.0),
    ("fan_in_fan_out", True, False),
    ("target_modules", ["k", "q"], ["l.0.k", "l.0.q"]),
]


@pytest.mark.parametrize(("field", "value", "nothing"), FIELDS, ids=[f[0] for f in FIELDS])
def test_more_than_half_of_the_clients_decide_a_field(field: str, value: Any, nothing: Any) -> None:
    """Where the others leave it null, one client names nothing; nor do two of four."""
    for having, count in ((1, 8), (2, 4), (4, 8)):
        found = adapters(*[{field: value}] * having, *[{}] * (count - having))
        assert merged_config(found, MODULES, 2, 2.0)[field] == nothing
        assert merged_config(found[::-1], MODULES, 2, 2.0)[field] == nothing
    for having, count in ((1, 1), (2, 3), (5, 8)):
        found = adapters(*[{}] * (count - having), *[{field: value}] * having)
        assert merged_config(found, MODULES, 2, 2.0)[field] == value


def test_a_plurality_decides_nothing() -> None:
    bases = ["a", "a", "b", "c"]
    found = adapters(*({"base_model_name_or_path": base} for base in bases))
    assert merged_config(found, MODULES, 2, 2.0)["base_model_name_or_path"] is None


@pytest.mark.parametrize("order", [1, -1])
def test_target_modules_of_more_than_half_that_have_the_modules(order: int) -> None:
    """Another's list with the same reach, or one more module of his, changes nothing that is
    written for the others' model."""
    targets = {"target_modules": ["q", "k"]}
    odd = adapters({"target_modules": ["0.q", "0.k"]}) + adapters(targets)
    assert merged_config(odd[::order], MODULES, 2, 2.0)["target_modules"] == ["l.0.k", "l.0.q"]
    more = adapters(targets, targets, targets) + adapters(targets, modules=(*MODULES, "x.q"))
    merged = merged_config(more[::order], [*MODULES, "x.q"], 2, 2.0)
    assert merged["target_modules"] == ["l.0.k", "l.0.q", "x.q"]
    assert merged_config(more[::order], MODULES, 2, 2.0)["target_modules"] == ["l.0.k", "l.0.q"]


def test_looking_targets_up_takes_no_loop_over_them() -> None:
    class Counted(frozenset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError("all of them were looked at")

    names = Counted(["q", "b.c", ""])
    modules = ["q", "a.q", "aq", "a.b.c", "ab.c", "b.c", "x."]
    expected = [any(m == n or m.endswith(f".{n}") for n in ["q", "b.c", ""]) for m in modules]
    assert [_targeted(module, names) for module in modules] == expected


@pytest.mark.parametrize(
    ("fields", "modules"),
    [
        ({"target_modules": ["q"]}, MODULES),
        ({"target_modules": "l.*"}, MODULES),
        ({"target_modules": ["q", "k"]}, ["l.0.q"]),
        ({"target_modules": ["q", "k"], "layers_to_transform": [0]}, MODULES),
        ({"target_modules": ["q", "k"], "exclude_modules": ["x"]}, MODULES),
        ({}, MODULES),
    ],
)
def test_full_paths_where_a_list_is_not_exact(fields: dict[str, Any], modules: list[str]) -> None:
    merged = merged_config(adapters(fields), modules, 2, 2.0)
    assert merged["target_modules"] == sorted(modules)


@pytest.mark.loaders
def test_a_merged_folder_loads_in_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = torch.nn.ModuleList([torch.nn.ModuleDict({"q": torch.nn.Linear(8, 6)})])

    tensors = pair("l.0.q", rank=3)
    found = adapters_from_memory({"c": (tensors, config(r=3, target_modules=["q"]))}).adapters
    merged = merged_config(found, ["l.0.q"], 3, 3.0)
    client(tmp_path, "merged", tensors, merged)
    model = peft.PeftModel.from_pretrained(Model(), tmp_path / "merged")
    layer = model.base_model.model.l[0]["q"]
    key_A, key_B = tensors
    torch.testing.assert_close(layer.get_delta_weight("default"), tensors[key_B] @ tensors[key_A])


def test_memory_is_checked_like_files() -> None:
    good = pair()
    key = next(iter(good))
    clients: dict[str, Any] = {
        "good": (good, config()),
        "empty": ({}, config()),
        "ints": ({key: torch.ones(2, 8, dtype=torch.int8)}, config()),
        "nan": (good | {key: torch.full((2, 8), torch.inf)}, config()),
        "meta": (good | {key: torch.ones(2, 8, device="meta")}, config()),
        "dora": (good, config(use_dora=True)),
        "zero": (good | {key: torch.ones(0, 8)}, config()),
        "list": (good | {key: [1.0]}, config()),
        "rank": (good, config(r=9)),
        "json": (good, config(lora_dropout=object())),
    }
    cohort = adapters_from_memory(clients)
    assert [a.name for a in cohort.adapters] == ["good"]
    words = {
        "empty": "holds no tensors",
        "ints": "dtype torch.int8",
        "nan": "16 NaN or Inf",
        "meta": "not a dense tensor",
        "dora": "DoRA",
        "zero": "axis of length 0",
        "list": "not a dense tensor",
        "rank": "config says rank 9",
        "json": "can't be written as JSON",
    }
    assert {r.name for r in cohort.rejected} == words.keys()
    for entry in cohort.rejected:
        assert words[entry.name] in entry.message
    (adapter,) = cohort.adapters
    expected = safetensors_bytes(good, {}) + config_json(config()).encode()
    assert adapter.sha256 == hashlib.sha256(expected).hexdigest()
    assert adapter.factors("layers.0.q_proj")[0].data_ptr() == good[key].data_ptr()
    other = list(good)[1]
    both = adapter.source.raw(key, other)
    assert bytes(both) == good[key].numpy().tobytes() + good[other].numpy().tobytes()
    good[key][0, 0] += 1
    with pytest.raises(RejectedClient, match="changed while reading"):
        adapter.factors("layers.0.q_proj")
    with pytest.raises(InputRefused):
        adapters_from_memory({})


@pytest.mark.loaders
def test_peft_configs_are_accepted_from_memory() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    (adapter,) = adapters_from_memory({"c": (pair(), lora)}).adapters
    assert adapter.modules["layers.0.q_proj"].scaling == 2.5
    assert adapter.config.target_modules == ("q_proj",)
    assert adapter.config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    "text",
    ['{"b": 2, "a": 0.5}', "a,0.5\nb,2\n", "name,weight\r\nb,2\r\n\r\na,0.5", '"a", 0.5\nb,2'],
)
def test_weights(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w"
    path.write_text(text)
    assert list(read_weights(path, ["a", "b"]).items()) == [("a", 0.5), ("b", 2.0)]


@pytest.mark.parametrize(
    "text",
    ["a;1,5\nb;2", "a\t1.5\nb\t2", 'name;n\n"a";"1.5"\n"b";"2"', "name\tn\na\t1,5\nb\t2"],
)
def test_tables_of_spreadsheets(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w"
    path.write_text(text)
    assert read_weights(path, ["a", "b"]) == {"a": 1.5, "b": 2.0}


def test_marks_in_names_are_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_text("a;x,1\nb\tc;d,2")
    assert read_weights(path, ["a;x", "b\tc;d"]) == {"a;x": 1.0, "b\tc;d": 2.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "gives no weight for 'b'"),
        ('{"a": 1, "b": 1, "c": 1}', "unknown clients: 'c'"),
        ('{"a": 1, "a": 1}', "gives the key 'a' twice"),
        ("a,1\na,2\nb,1", "gives client 'a' twice"),
        ('{"a": 0, "b": 1}', "weight of client 'a' is 0"),
        ('{"a": true, "b": 1}', "weight of client 'a' is True"),
        ('{"a": "1", "b": 1}', "weight of client 'a' is '1'"),
        ('{"a": NaN, "b": 1}', "holds NaN"),
        ("a,nan\nb,1", "weight of client 'a' is nan"),
        ("a,1\nb,x", "weight of client 'b' is 'x'"),
        ("a,-1\nb,1", "weight of client 'a' is -1.0"),
        ("a,1,2\nb,1", "line 1: 3 columns"),
        ("[1]", "is not a JSON object"),
        ("a;1.000,5\nb;2", "weight of client 'a' is '1.000,5'"),
        ("a;1;2\nb;2", "line 1: 3 columns"),
        ('"a"x,1\nb,1', "is not readable as CSV"),
        ("a 1\nb 2", "line 1: 1 columns"),
    ],
)
def test_bad_weights(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "w"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_weights(path, ["a", "b"])
    assert words in caught.value.message


def test_weights_that_are_absent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_weights(tmp_path / "none", ["a"])
    with pytest.raises(UsageError, match="a folder"):
        read_weights(tmp_path, ["a"])
