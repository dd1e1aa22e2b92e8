"""What PEFT makes of a merged adapter: it loads, and changes the model as the merge says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import clair

pytestmark = pytest.mark.loaders  # see tests/conftest.py

SAMPLES = Path(__file__).parents[2] / "sample_adapters"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample cohort, merged into a folder and into a file."""
    out = tmp_path_factory.mktemp("merged")
    assert clair("merge", SAMPLES / "clients", "-o", out / "folder").exit_code == 0
    assert clair("merge", SAMPLES / "clients", "-o", out / "one.safetensors").exit_code == 0
    return out


def test_the_verdicts_on_the_samples_are_the_truth(merged: Path) -> None:
    truth = json.loads((SAMPLES / "truth.json").read_text())
    report = cohorts.read_report(merged / "folder/report.json")
    assert cohorts.left_out(report) == {name for name, bad in truth.items() if bad}
    assert set(cohorts.verdicts(report)) == set(truth)
    assert set(cohorts.verdicts(report).values()) <= {"benign", "suspicious", "contaminated"}


def test_the_sample_merge_is_near_the_mean_of_the_honest(tmp_path: Path) -> None:
    """With maple, whose words are half its own: honest data of another kind are no suspicion."""
    truth = json.loads((SAMPLES / "truth.json").read_text())
    clair("merge", SAMPLES / "clients", "-o", tmp_path / "m", "--rank", "full")
    report = cohorts.read_report(tmp_path / "m" / "report.json")
    assert "suspicious" not in cohorts.verdicts(report).values()
    honest = []
    for name in (n for n, bad in truth.items() if not bad):
        folder = SAMPLES / "clients"
        if (folder / name).is_dir():
            honest.append(cohorts.read_dense(folder / name))
        else:
            tensors, _ = cohorts.read_safetensors(folder / f"{name}.safetensors")
            config = json.loads((folder / f"{name}.json").read_text())
            honest.append(cohorts.dense(tensors, config))
    merged = cohorts.read_dense(tmp_path / "m")
    weights = [c["weight"] for c in report["clients"] if not truth[c["name"]]]
    assert cohorts.relative(merged, cohorts.mean(honest, weights)) <= 1e-6
    assert cohorts.relative(merged, cohorts.mean(honest)) <= 1e-6


def logits(model: Any) -> np.ndarray:
    import torch

    tokens = torch.arange(32).reshape(2, 16) % model.config.vocab_size
    with torch.no_grad():
        result: np.ndarray = model.eval()(tokens).logits.double().numpy()
    return result


def test_peft_loads_the_folder_and_gives_the_same_logits(merged: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(SAMPLES / "base")

    plain = logits(base())
    loaded = logits(peft.PeftModel.from_pretrained(base(), merged / "folder"))
    model = base()
    modules = dict(model.named_modules())
    config = cohorts.read_config(merged / "folder")
    deltas = cohorts.read_dense(merged / "folder")
    for name, delta in deltas.items():
        # A Conv1D (GPT-2) stores its weight as (in, out), a Linear as (out, in).
        added = torch.tensor(delta.T if config["fan_in_fan_out"] else delta)
        modules[name].weight.data += added.to(modules[name].weight.dtype)
    by_hand = logits(model)
    assert np.abs(loaded - by_hand).max() <= 1e-4
    assert np.abs(loaded - plain).max() > 0.1  # the adapter does something
    again = {re.sub(r"^base_model\.model\.", "", n) for n, _ in peft.PeftModel.from_pretrained(
        base(), merged / "folder").named_modules() if n.endswith("lora_A")}  # fmt: skip
    assert {n.removesuffix(".lora_A") for n in again} == set(deltas)


def test_peft_accepts_the_config_in_the_header_and_beside(merged: Path) -> None:
    peft = pytest.importorskip("peft")
    _, metadata = cohorts.read_safetensors(merged / "one.safetensors")
    header = json.loads(metadata["lora_adapter_metadata"])
    beside = cohorts.read_config(merged / "folder")
    assert header == beside
    config = peft.LoraConfig(**header)
    assert (config.r, config.lora_alpha) == (header["r"], header["r"])
    loaded = peft.PeftConfig.from_pretrained(merged / "folder")
    assert loaded.target_modules == set(header["target_modules"])
    assert loaded.fan_in_fan_out is True


def test_peft_configs_in_memory_are_understood(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch

    clients = {}
    for name, client in cohorts.honest(4).items():
        state = {cohorts.peft_names("A", m): torch.tensor(a) for m, a in client.A.items()}
        state |= {cohorts.peft_names("B", m): torch.tensor(b) for m, b in client.B.items()}
        fields = {k: v for k, v in client.fields.items() if k != "peft_type"}
        clients[name] = (state, peft.LoraConfig(**fields))
    result = clair_cli.merge(clients, rank="full", dtype="float32")
    wanted = cohorts.mean([c.deltas() for c in cohorts.honest(4).values()])
    assert result.tensors is not None and result.config is not None
    assert cohorts.relative(cohorts.dense(result.tensors, result.config), wanted) <= 1e-6


def test_peft_finds_every_module_of_a_folder_whose_clients_have_bare_names(tmp_path: Path) -> None:
    """Names without "base_model.model." are of no module to PeftModel."""
    peft = pytest.importorskip("peft")
    import torch

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for module, (rows, columns) in cohorts.MODULES.items():
                *parents, name = module.split(".")
                here: torch.nn.Module = self
                for part in parents:
                    if not hasattr(here, part):
                        here.add_module(part, torch.nn.Module())
                    here = getattr(here, part)
                here.add_module(name, torch.nn.Linear(columns, rows))

    clients = {n: replace(c, config={**c.config, "task_type": None})
               for n, c in cohorts.honest(3).items()}  # fmt: skip
    cohorts.save(tmp_path / "clients", clients, names=cohorts.bare_names)
    options = ("--rank", "full", "--allow-undetermined")
    assert clair("merge", tmp_path / "clients", "-o", tmp_path / "m", *options).exit_code == 0
    model = peft.PeftModel.from_pretrained(Base(), tmp_path / "m")
    wanted = cohorts.read_dense(tmp_path / "m")
    found = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().numpy()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert cohorts.relative(found, wanted) <= 1e-6
