"""mlx-lm's adapters: read, compared with PEFT's, and written as its `load_adapters` takes them.

test_mlx_loader.py has the loader itself; here it is followed in numpy: which modules become
LoRA layers (`linear_to_lora_layers`), which tensors are accepted (`load_adapters`), and what the
layers add (`LoRALinear.fuse`, `LoRAEmbedding.fuse`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import Array, Client, clair
from tests.hostile import load_cohort

SCALE = 5.0
EXACT = ("--rank", "full", "--dtype", "float32", "--allow-undetermined")
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def mlx_tensors(client: Client) -> dict[str, Array]:
    tensors = {f"{m}.lora_a": a.T for m, a in client.A.items()}
    return tensors | {f"{m}.lora_b": b.T for m, b in client.B.items()}


def mlx_fields(rank: int, **more: Any) -> dict[str, Any]:
    """As mlx_lm.lora saves it: all of a run's options."""
    return {
        "model": "mlx-community/tiny", "train": True, "fine_tune_type": "lora", "num_layers": 16,
        "adapter_path": "adapters", "batch_size": 4, "learning_rate": 1e-5, "seed": 0,
        "lora_parameters": {"rank": rank, "dropout": 0.0, "scale": SCALE}, **more,
    }  # fmt: skip


def save_mlx(folder: Path, client: Client, **more: Any) -> None:
    folder.mkdir(parents=True)
    rank = len(next(iter(client.A.values())))
    data = cohorts.safetensors(mlx_tensors(client), "F32", {"format": "mlx"})
    (folder / "adapters.safetensors").write_bytes(data)
    (folder / "0000100_adapters.safetensors").write_bytes(data[:-8])  # a checkpoint, cut short
    (folder / "adapter_config.json").write_text(json.dumps(mlx_fields(rank, **more)))


def mlx_deltas(client: Client) -> cohorts.Deltas:
    return {m: SCALE * client.B[m] @ a for m, a in client.A.items()}


def load_adapters(folder: Path, model: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    """What mlx-lm adds to the weights of a model, by module.

    Args:
        model: module to the shape of its weight, (out, in) or (entries, dim).
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    given, keys = config["lora_parameters"], set(config["lora_parameters"]["keys"])
    assert config["num_layers"] == -1  # layers[-max(-1, 0):] is all of them
    layers = {m: m.split(".", 3)[3] for m in model if m.startswith("model.layers.")}
    adapted = [m for m in model if m in keys or layers.get(m) in keys]
    shapes = {}
    for module in adapted:
        rows, columns = model[module][::-1] if module != EMBEDDING else model[module]
        shapes |= {f"{module}.lora_a": (rows, given["rank"])}
        shapes |= {f"{module}.lora_b": (given["rank"], columns)}
    tensors, metadata = cohorts.read_safetensors(folder / "adapters.safetensors")
    assert metadata == {"format": "pt"}
    assert {name: t.shape for name, t in tensors.items()}.items() <= shapes.items()
    found = {}
    for module in adapted:
        if f"{module}.lora_a" in tensors:
            product = tensors[f"{module}.lora_a"] @ tensors[f"{module}.lora_b"]
            found[module] = given["scale"] * (product if module == EMBEDDING else product.T)
    return found


MODEL = {**cohorts.MODULES, HEAD: (30, 16), EMBEDDING: (30, 16)}


def test_a_folder_is_read_without_its_checkpoints(tmp_path: Path) -> None:
    client = cohorts.honest(1)["c0"]
    save_mlx(tmp_path / "c0", client)
    cohort = load_cohort(tmp_path)
    assert cohort.rejected == ()
    (adapter,) = cohort.adapters
    assert (adapter.format, adapter.config.base_model_name_or_path) == ("mlx", "mlx-community/tiny")
    assert adapter.notes == ()
    found = {}
    for name, module in adapter.modules.items():
        lora_A, lora_B = adapter.factors(name)
        found[name] = module.scaling * (lora_B.double() @ lora_A.double()).numpy()
        assert module.scaling == pytest.approx(SCALE, rel=1e-15)
    assert cohorts.relative(found, mlx_deltas(client)) <= 2e-7


def test_a_round_comes_back_in_the_clients_format(tmp_path: Path) -> None:
    clients = cohorts.honest(4)
    for name, client in clients.items():
        save_mlx(tmp_path / "clients" / name, client)
    for out, more in (("m", ()), ("k", ("--keep-alpha", "--rank", "16"))):
        options = (*EXACT, *more)
        result = clair("merge", tmp_path / "clients", "-o", tmp_path / out, *options)
        assert result.exit_code == 0, result.stderr
        files = {path.name for path in (tmp_path / out).iterdir()}
        assert files == {
            "adapters.safetensors", "adapter_config.json", "report.json", "README.md",
        }  # fmt: skip
        assert not clair_cli.verify(tmp_path / out, tmp_path / "clients").differences
    report = cohorts.read_report(tmp_path / "m/report.json")
    assert report["merged"]["format"] == "mlx"
    weights = [c["weight"] for c in sorted(report["clients"], key=lambda c: c["name"])]
    mean = cohorts.mean([mlx_deltas(client) for client in clients.values()], weights)
    assert cohorts.relative(load_adapters(tmp_path / "m", MODEL), mean) <= 1e-6
    again = {"c0": tmp_path / "m"}  # what was written is read as what it is
    (again["c0"] / "report.json").unlink()
    (tmp_path / "round").mkdir()
    again["c0"].rename(tmp_path / "round" / "c0")
    assert clair("merge", tmp_path / "round", "-o", tmp_path / "n", *EXACT).exit_code == 0
    assert cohorts.relative(load_adapters(tmp_path / "n", MODEL), mean) <= 1e-6
    # Its alpha is the clients' scale times their rank.
    config = json.loads((tmp_path / "k" / "adapter_config.json").read_text())
    assert config["lora_parameters"]["scale"] == pytest.approx(SCALE * 6 / 16)


def test_mlx_and_peft_clients_merge_together_and_as_either(tmp_path: Path) -> None:
    clients = cohorts.honest(4)
    for k, (name, client) in enumerate(clients.items()):
        if k < 3:
            save_mlx(tmp_path / "clients" / name, client, model="org/base")
            continue
        own = Client(client.A, client.B, {**client.config, "lora_alpha": 6 * SCALE})
        cohorts.save_peft(tmp_path / "clients" / name, own)
    for wanted in ("auto", "mlx", "peft"):
        options = ("--tensor-names", wanted, *EXACT)
        result = clair("merge", tmp_path / "clients", "-o", tmp_path / wanted, *options)
        assert result.exit_code == 0, result.stderr
    mlx = load_adapters(tmp_path / "mlx", MODEL)
    assert (tmp_path / "auto" / "adapters.safetensors").exists()  # most clients' format
    assert cohorts.relative(cohorts.read_dense(tmp_path / "peft"), mlx) <= 1e-6
    mean = cohorts.mean([mlx_deltas(client) for client in clients.values()])
    assert cohorts.relative(mlx, mean) <= 1e-5


def test_one_file_holds_its_config_in_the_header(tmp_path: Path) -> None:
    save_mlx(tmp_path / "clients" / "c0", cohorts.honest(1)["c0"])
    out = tmp_path / "one.safetensors"
    assert clair("merge", tmp_path / "clients", "-o", out, *EXACT).exit_code == 0
    _, metadata = cohorts.read_safetensors(out)
    assert json.loads(metadata["lora_adapter_metadata"])["lora_parameters"]["scale"] == 1.0
    assert not clair_cli.verify(out, tmp_path / "clients").differences


def test_files_with_their_config_beside(tmp_path: Path) -> None:
    """As a client, NAME.json; one adapter alone, also the folder's adapter_config.json."""
    client = cohorts.honest(1)["c0"]
    save_mlx(tmp_path / "s", client)
    (tmp_path / "clients").mkdir()
    data = (tmp_path / "s" / "adapters.safetensors").read_bytes()
    (tmp_path / "clients" / "c0.safetensors").write_bytes(data)
    config = (tmp_path / "s" / "adapter_config.json").read_bytes()
    (tmp_path / "clients" / "c0.json").write_bytes(config)
    (adapter,) = load_cohort(tmp_path / "clients").adapters
    assert {m.scaling for m in adapter.modules.values()} == {SCALE}
    for source in (tmp_path / "s" / "adapters.safetensors", tmp_path / "clients/c0.safetensors"):
        clair_cli.convert(source, tmp_path / "p", "peft", force=True)
        found = cohorts.read_dense(tmp_path / "p")
        assert cohorts.relative(found, mlx_deltas(client)) <= 2e-7


def test_embeddings_and_modules_outside_the_layers(tmp_path: Path) -> None:
    """An embedding's factors have a linear layer's names: what it is called tells."""
    rng = np.random.default_rng(0)
    A = {EMBEDDING: rng.standard_normal((2, 30)), HEAD: rng.standard_normal((2, 16))}
    B = {EMBEDDING: rng.standard_normal((16, 2)), HEAD: rng.standard_normal((30, 2))}
    save_mlx(tmp_path / "clients" / "c0", Client(A, B))
    assert clair("merge", tmp_path / "clients", "-o", tmp_path / "m", *EXACT).exit_code == 0
    wanted = {EMBEDDING: SCALE * (B[EMBEDDING] @ A[EMBEDDING]).T, HEAD: SCALE * B[HEAD] @ A[HEAD]}
    assert cohorts.relative(load_adapters(tmp_path / "m", MODEL), wanted) <= 1e-6
    options = ("--tensor-names", "peft", *EXACT)
    assert clair("merge", tmp_path / "clients", "-o", tmp_path / "p", *options).exit_code == 0
    names = cohorts.read_safetensors(tmp_path / "p" / "adapter_model.safetensors")[0]
    assert names[f"base_model.model.{EMBEDDING}.lora_embedding_A"].shape[1] == 30


def test_adapters_in_memory() -> None:
    import torch

    states: dict[str, Any] = {
        name: ({k: torch.tensor(t).contiguous() for k, t in mlx_tensors(client).items()},
               mlx_fields(6))
        for name, client in cohorts.honest(3).items()
    }  # fmt: skip
    result = clair_cli.merge(states, rank="full", dtype="float32")
    assert result.tensors is not None and result.config is not None
    assert result.config["num_layers"] == -1
    assert {name.rpartition(".")[2] for name in result.tensors} == {"lora_a", "lora_b"}


BAD: list[tuple[dict[str, Any], dict[str, Array], str]] = [
    ({"fine_tune_type": "dora"}, {}, "not supported: DoRA (fine_tune_type is 'dora')"),
    ({"use_dora": True}, {}, "not supported: DoRA (use_dora is True)"),
    ({"fine_tune_type": "full"}, {}, "not supported: a fully trained model"),
    ({"lora_parameters": {"rank": 6}}, {}, "lora_parameters' scale is None"),
    ({"lora_parameters": {"rank": 6, "scale": 1e300}}, {}, "expected a finite number"),
    ({"lora_parameters": {"rank": 0, "scale": 1}}, {}, "lora_parameters' rank is 0"),
    ({"lora_parameters": {"rank": 5, "scale": 1}}, {}, "have rank 6 but the config says rank 5"),
    ({"lora_parameters": None}, {}, "lora_parameters is None, expected an object"),
    ({}, {"model.layers.0.attn.q_proj.m": np.ones(24)}, "DoRA not supported"),
    ({}, {"x.lora_A.weight": np.ones((6, 4)), "x.lora_B.weight": np.ones((4, 6))}, "two formats"),
    ({}, {f"x.lora_{s}": np.ones((2, 3, 4)) for s in "ab"}, "(LoRA of stacked experts)"),
    ({}, {"x.lora_a": np.ones((2, 4)), "x.lora_b": np.ones((4, 2))}, "tensors have rank 4"),
]


@pytest.mark.parametrize(("fields", "tensors", "words"), BAD, ids=[b[2][:30] for b in BAD])
def test_what_is_no_plain_adapter_is_rejected_by_name(
    tmp_path: Path, fields: dict[str, Any], tensors: dict[str, Array], words: str
) -> None:
    client = cohorts.honest(1)["c0"]
    save_mlx(tmp_path / "c0", client, **fields)
    data = cohorts.safetensors({**mlx_tensors(client), **tensors}, "F32", {})
    (tmp_path / "c0" / "adapters.safetensors").write_bytes(data)
    (rejected,) = load_cohort(tmp_path).rejected
    assert words in rejected.message


def test_an_alpha_that_means_nothing_is_noted(tmp_path: Path) -> None:
    client = cohorts.honest(1)["c0"]
    for alpha, notes in ((16, ["mlx_alpha"]), (6, []), (None, [])):
        parameters = {"rank": 6, "scale": SCALE, "alpha": alpha}
        save_mlx(tmp_path / str(alpha) / "c0", client, lora_parameters=parameters)
        (adapter,) = load_cohort(tmp_path / str(alpha)).adapters
        assert [remark.code for remark in adapter.notes] == notes
        assert {m.scaling for m in adapter.modules.values()} == {SCALE}


def test_convolutions_have_no_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"conv.lora_A.weight": rng.standard_normal((2, 3, 3, 3)),
               "conv.lora_B.weight": rng.standard_normal((4, 2, 1, 1))}  # fmt: skip
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "c0.safetensors").write_bytes(cohorts.safetensors(tensors, "F32", {}))
    options = ("--tensor-names", "mlx", "--assume-alpha", "rank", *EXACT)
    result = clair("merge", tmp_path / "clients", "-o", tmp_path / "m", *options)
    assert result.exit_code == 2
    assert "mlx-lm's format has no LoRA of a convolution: 'conv'" in result.stderr
