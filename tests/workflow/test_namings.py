"""Rounds whose clients name one model's modules in two ways, and have something in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import clair, texts
from tests.workflow.test_formats import diffusers_new, pipeline_clients, write

Names = Callable[[str], str]
EXACT: dict[str, Any] = {"rank": "full", "dtype": "float32"}

VLM = {
    **{f"model.language_model.layers.{n}.{m}": (24, 16) for n in (0, 1) for m in ("q", "v")},
    "lm_head": (20, 16),
}
SDXL = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (24, 16),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (24, 16),
    "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_k": (20, 16),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (18, 12),
}
FLUX = {
    "transformer.transformer_blocks.0.attn.to_out.0": (24, 16),
    "transformer.single_transformer_blocks.0.proj_out": (20, 16),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (18, 12),
}


def llava(name: str) -> str:
    if name == "lm_head":
        return "language_model.lm_head"
    return name.replace("model.language_model.", "language_model.model.")


def wrapped(name: str) -> str:
    """As LLaVA's names were before 4.52: the vision tower's have changed again in 5."""
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return llava(name)


def qwen(name: str) -> str:
    return name.replace("model.language_model.", "model.")


def sgm(name: str) -> str:
    name = name.replace("unet.down_blocks.1.attentions.0", "unet.input_blocks.4.1")
    name = name.replace("unet.mid_block.attentions.0", "unet.middle_block.1")
    return name.replace("unet.up_blocks.0.attentions.1", "unet.output_blocks.1.1")


def authors(name: str) -> str:
    name = name.replace("transformer.single_transformer_blocks.0.proj_out",
                        "transformer.single_blocks.0.linear2")  # fmt: skip
    return name.replace("transformer.transformer_blocks.0.attn.to_out.0",
                        "transformer.double_blocks.0.img_attn.proj")  # fmt: skip


def renamed(client: cohorts.Client, names: Names) -> cohorts.Client:
    return cohorts.Client(
        {names(m): a for m, a in client.A.items()}, {names(m): b for m, b in client.B.items()},
        {**client.config, "target_modules": sorted(map(names, client.A))},
    )  # fmt: skip


def save(
    modules: Mapping[str, Any], names: Mapping[str, Names], folder: str = "clients"
) -> cohorts.Clients:
    """PEFT folders of clients c0, c1..., those of `names` with other names of their modules."""
    clients = pipeline_clients(7, modules)
    for name, client in clients.items():
        cohorts.save_peft(Path(folder, name), renamed(client, names.get(name, str)))
    return clients


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("few", [("c1",), ("c0", "c2", "c3"), ("c0", "c2", "c3", "c5")])
@pytest.mark.parametrize("older", [llava, qwen])
def test_a_vision_language_model_before_and_after(older: Names, few: tuple[str, ...]) -> None:
    """All of it is merged, in the naming of most clients, and in no other."""
    clients = save(VLM, dict.fromkeys(few, older))
    found = clair_cli.merge("clients", **EXACT)
    assert {c.verdict for c in found.report.clients} == {"benign"}
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    if 2 * len(few) > len(clients):
        exact = {older(m): delta for m, delta in exact.items()}
    assert found.tensors is not None and found.config is not None
    assert {m.name for m in found.report.modules} == set(exact)
    merged = cohorts.dense(found.tensors, found.config)
    assert set(merged) == set(exact) and cohorts.relative(merged, exact) <= 1e-5
    said = [t for t in texts(found.report.warnings) if "go by the names of transformers" in t]
    assert len(said) == 1


def test_three_namings_at_once_and_a_client_of_the_head_alone() -> None:
    names: dict[str, Names] = {"c0": qwen, "c1": qwen, "c2": str, "c6": str}
    clients = save(VLM, {**dict.fromkeys(("c3", "c4", "c5"), llava), **names})
    head = cohorts.without(clients["c6"], [m for m in VLM if m != "lm_head"])
    cohorts.save_peft(Path("clients/c6"), head)
    found = clair_cli.merge("clients", **EXACT)
    clients["c6"] = head
    weights = {c.name: c.weight for c in found.report.clients}
    assert sum(w > 0 for w in weights.values()) >= 6
    exact = cohorts.mean([c.deltas() for c in clients.values()], [weights[n] for n in clients])
    exact = {llava(m): delta for m, delta in exact.items()}
    assert found.tensors is not None and found.config is not None
    merged = cohorts.dense(found.tensors, found.config)
    assert set(merged) == set(exact) and cohorts.relative(merged, exact) <= 1e-5


@pytest.mark.parametrize("few", [("c1", "c2"), ("c0", "c2", "c3", "c5")])
def test_a_vision_tower_that_was_renamed_twice(few: tuple[str, ...]) -> None:
    modules = {**VLM, "model.vision_tower.encoder.layers.0.q": (18, 12)}
    clients = save(modules, dict.fromkeys(few, wrapped))
    found = clair_cli.merge("clients", **EXACT)
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    if 2 * len(few) > len(clients):
        exact = {wrapped(m): delta for m, delta in exact.items()}
    assert found.tensors is not None and found.config is not None
    merged = cohorts.dense(found.tensors, found.config)
    assert set(merged) == set(exact) and cohorts.relative(merged, exact) <= 1e-5


def test_a_model_with_modules_of_both_names_keeps_both() -> None:
    """Two towers of most clients are no two namings, and one client alone decides nothing."""
    both = {**VLM, **{qwen(m): shape for m, shape in VLM.items()}}
    clients = pipeline_clients(7, both)
    for name in ("c2", "c4"):
        clients[name] = cohorts.without(clients[name], [m for m in VLM if m != "lm_head"])
    cohorts.save(Path("clients"), clients)
    assert {m.name for m in clair_cli.inspect("clients").report.modules} == set(both)
    save(VLM, {"c0": qwen, "c1": qwen, "c2": qwen}, "others")
    cohorts.save_peft(Path("others/c3"), clients["c0"])
    report = clair_cli.inspect("others").report
    assert {m.name for m in report.modules if m.n_updates >= 6} == set(VLM)


@pytest.mark.parametrize("few", [("c1",), ("c0", "c2", "c3", "c5")])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_two_namings_of_stable_diffusion_xl(form: str, few: tuple[str, ...]) -> None:
    clients = pipeline_clients(7, SDXL)
    for name, client in clients.items():
        other = renamed(client, sgm if name in few else str)
        if form == "kohya":
            tensors = kohya(other)
        else:
            scaled = cohorts.scaled(other, 3.0 / 6)  # alpha is the rank without a config
            tensors = diffusers_new(scaled)
        write(Path(f"clients/{name}.safetensors"), tensors)
    report = clair_cli.merge("clients", "m.safetensors", **EXACT).report
    assert {c.verdict for c in report.clients} == {"benign"}
    assert {m.n_updates for m in report.modules} == {7} and len(report.modules) == len(SDXL)
    most: Names = sgm if 2 * len(few) > 7 else str
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    tensors, _ = cohorts.read_safetensors(Path("m.safetensors"))
    for module, delta in exact.items():
        name = most(module)
        if form == "kohya":
            stem = flat(name)
            down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        else:
            down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert abs(up @ down - delta).max() <= 1e-5
    assert (
        len([name for name in tensors if name.endswith(("lora_up.weight", "lora_B.weight"))]) == 4
    )


def flat(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"lora_{'unet' if first == 'unet' else 'te1'}_{rest.replace('.', '_')}"


def kohya(client: cohorts.Client) -> dict[str, Any]:
    import numpy as np

    tensors = {f"{flat(m)}.lora_down.weight": a for m, a in client.A.items()}
    tensors |= {f"{flat(m)}.lora_up.weight": b for m, b in client.B.items()}
    return tensors | {f"{flat(m)}.alpha": np.array(3.0) for m in client.A}


@pytest.mark.parametrize(("few", "gone"), [(("c1", "c4"), ("c1", "c4")), (("c0", "c1", "c2", "c5"),
                                           ("c3", "c4", "c6"))])  # fmt: skip
def test_fused_layers_reject_the_smaller_naming(
    few: tuple[str, ...], gone: tuple[str, ...]
) -> None:
    clients = pipeline_clients(7, FLUX)
    for name, client in clients.items():
        write(
            Path(f"clients/{name}.safetensors"),
            diffusers_new(renamed(client, authors if name in few else str)),
        )
    report = clair_cli.inspect("clients", assume_alpha="rank").report
    rejected = {c.name: c.reasons[0].text for c in report.clients if c.verdict == "rejected"}
    assert tuple(rejected) == gone
    assert all("there is no translation" in text for text in rejected.values())
    assert {m.n_updates for m in report.modules} == {7 - len(gone)}


def test_the_previous_adapter_is_translated_or_a_usage_error() -> None:
    clients = save(VLM, {"c0": llava})
    cohorts.save_peft(Path("before"), renamed(clients["c1"], llava))
    report = clair_cli.inspect("clients", previous="before").report
    assert {m.name for m in report.modules} == set(VLM)
    (same,) = (c for c in report.clients if c.name == "c1")
    assert {r.code for r in same.reasons} >= {"no_update"}
    save(FLUX, {}, "flux")
    cohorts.save_peft(Path("own"), renamed(pipeline_clients(1, FLUX)["c0"], authors))
    result = clair("inspect", "flux", "--previous", "own")
    assert result.exit_code == 2
    assert "--previous: its modules have the names of the model's authors" in result.stderr


@pytest.mark.parametrize("few", [("c1",), ("c0", "c1", "c2", "c5")])
def test_files_without_the_unet_in_front_of_its_names(few: tuple[str, ...]) -> None:
    clients = pipeline_clients(7, SDXL)
    for name, client in clients.items():
        bare = renamed(client, lambda m: m.removeprefix("unet.")) if name in few else client
        write(Path(f"clients/{name}.safetensors"), diffusers_new(cohorts.scaled(bare, 3.0 / 6)))
    options: dict[str, Any] = {"assume_alpha": "rank", **EXACT}
    found = clair_cli.merge("clients", "m.safetensors", tensor_names="diffusers", **options)
    assert {m.name for m in found.report.modules} == set(SDXL)
    assert {m.n_updates for m in found.report.modules} == {7}
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    tensors, _ = cohorts.read_safetensors(Path("m.safetensors"))
    for module, delta in exact.items():
        product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        assert abs(product - delta).max() <= 1e-5


def test_verify_does_it_again() -> None:
    save(VLM, {"c0": llava, "c3": qwen})
    assert clair("merge", "clients", "-o", "m").exit_code == 0
    result = clair("verify", "m", "clients")
    assert result.exit_code == 0, result.stdout
