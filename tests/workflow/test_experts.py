"""Fused experts: read one by one, judged and merged as modules of their own, written back fused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import Deltas, clair, factored, low_rank

EXACT: dict[str, Any] = {"rank": "full", "dtype": "float32"}
P, RANK, EXPERTS = "base_model.model.", 4, 3
UP, DOWN = "layers.0.mlp.experts.base_layer", "layers.0.mlp.experts"
LAYERS = {UP: (24, 16), DOWN: (16, 12)}
SHAPES = {f"{layer}[{e}]": shape for layer, shape in LAYERS.items() for e in range(EXPERTS)}
SHAPES["layers.0.q"] = (20, 16)
CONFIG = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q"],
    "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
}  # fmt: skip


def trained(n_clients: int, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> cohorts.Clients:
    rng = np.random.default_rng(3)
    common = {m: low_rank(shape, 2, rng) for m, shape in shapes.items()}
    clients = {}
    for k in range(n_clients):
        own = {m: low_rank(shape, 2, rng) for m, shape in shapes.items()}
        deltas = {m: 0.7 * common[m] + 0.7 * own[m] for m in shapes}
        clients[f"c{k}"] = factored(deltas, RANK, seed=k)
    return clients


def fused(client: cohorts.Client, stacked: bool = False) -> dict[str, Any]:
    """A file's tensors: all experts of a layer in one pair, as PEFT or as a stack."""
    tensors, layers = {}, dict[str, list[str]]()
    for module in client.A:
        layers.setdefault(module.partition("[")[0], []).append(module)
    for layer, modules in layers.items():
        if modules == [layer]:
            A, B = client.A[layer], client.B[layer]
        elif stacked:
            A, B = (np.stack([side[m] for m in modules]) for side in (client.A, client.B))
        else:
            A = np.concatenate([client.A[m] for m in modules])
            out, rank = client.B[modules[0]].shape
            B = np.zeros((out, rank * len(modules)))
            for e, m in enumerate(modules):
                B[:, e :: len(modules)] = client.B[m]  # the expert is the fastest
        tensors[f"{P}{layer}.lora_A.weight"], tensors[f"{P}{layer}.lora_B.weight"] = A, B
    return tensors


def unfused(tensors: Mapping[str, Any], count: int = EXPERTS) -> Deltas:
    """The delta weights of what is written with alpha = rank, by module."""
    found = {}
    for name, A in tensors.items():
        layer = name.removeprefix(P).removesuffix(".lora_A.weight")
        if not name.endswith(".lora_A.weight"):
            continue
        B = np.asarray(tensors[f"{P}{layer}.lora_B.weight"])
        if layer not in LAYERS:
            found[layer] = B @ np.asarray(A)
            continue
        for e in range(count):
            part = np.asarray(A).reshape(count, -1, A.shape[1])[e] if A.ndim == 2 else A[e]
            found[f"{layer}[{e}]"] = (B[:, e::count] if B.ndim == 2 else B[e]) @ part
    return found


def pairs(clients: cohorts.Clients, **config: Any) -> dict[str, Any]:
    return {n: (fused(c), {**CONFIG, **config}) for n, c in clients.items()}


def save(folder: str, tensors: Mapping[str, Any], config: Mapping[str, Any] = CONFIG) -> None:
    import json

    Path(folder).mkdir(parents=True)
    data = cohorts.safetensors(tensors, "F32", {"format": "pt"})
    Path(folder, "adapter_model.safetensors").write_bytes(data)
    Path(folder, "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_merge_is_the_mean_expert_by_expert() -> None:
    clients = trained(5)
    for name, client in clients.items():
        save(f"clients/{name}", fused(client))
    result = clair("merge", "clients", "-o", "m", "--rank", "full", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    report = cohorts.read_report(Path("m/report.json"))
    assert {m["name"] for m in report["modules"]} == set(SHAPES)
    tensors, _ = cohorts.read_safetensors(Path("m/adapter_model.safetensors"))
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    assert len(tensors) == 6 and cohorts.relative(unfused(tensors), exact) <= 1e-5
    config = cohorts.read_config(Path("m"))
    assert config["target_modules"] == ["layers.0.q"]
    assert config["target_parameters"] == sorted(CONFIG["target_parameters"])
    assert clair("verify", "m", "clients").exit_code == 0
    # what is written is read again
    again = clair_cli.inspect({"m": (dict(tensors), config)}).report
    assert {m.name for m in again.modules} == set(SHAPES)


def test_files_and_memory_and_plain_modules_are_judged_alike() -> None:
    """As the same experts in files of their own."""
    rng = np.random.default_rng(5)
    bad = factored({m: low_rank(shape, 4, rng) for m, shape in SHAPES.items()}, RANK)
    clients = {**trained(8), "bad": bad}
    for name, client in clients.items():
        save(f"clients/{name}", fused(client))
    found = [
        clair_cli.inspect("clients").report,
        clair_cli.inspect(pairs(clients)).report,
        clair_cli.inspect({n: (own_modules(c), c.fields) for n, c in clients.items()}).report,
    ]
    for report in found:
        assert [c.name for c in report.clients if c.verdict == "contaminated"] == ["bad"]
        scores = {c.name: c.scores.loading for c in report.clients}
        assert scores == pytest.approx({c.name: c.scores.loading for c in found[0].clients})


def own_modules(client: cohorts.Client) -> dict[str, Any]:
    """A file's tensors with a module for each expert."""
    names = {m: m.replace(".base_layer[", "[").replace("[", ".").replace("]", f".w{len(m) % 2}")
             for m in client.A}  # fmt: skip
    tensors = {f"{P}{names[m]}.lora_A.weight": a for m, a in client.A.items()}
    return tensors | {f"{P}{names[m]}.lora_B.weight": b for m, b in client.B.items()}


def test_an_expert_that_nobody_changed_is_written_as_zeros() -> None:
    clients = trained(5)
    idle = f"{UP}[1]"
    for name, client in clients.items():
        B = {m: 0.0 * b if m == idle else b for m, b in client.B.items()}
        clients[name] = cohorts.Client(client.A, B, client.config)
    found = clair_cli.merge(pairs(clients), "m", **EXACT)
    assert found.tensors is not None
    written = unfused({n: t.numpy() for n, t in found.tensors.items()})
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    assert not written[idle].any() and cohorts.relative(written, exact) <= 1e-5
    assert clair_cli.verify("m").exit_code == 0


def test_stacked_factors_come_back_stacked() -> None:
    """(E, rank, in) and (E, out, rank), as serving engines have them."""
    shapes = {f"layers.0.experts.up[{e}]": (24, 16) for e in range(EXPERTS)}
    clients = trained(5, {**shapes, "layers.0.q": (20, 16)})
    fields = {**CONFIG, "target_modules": ["q", "experts.up"], "target_parameters": None}
    given = {n: (fused(c, stacked=True), fields) for n, c in clients.items()}
    found = clair_cli.merge(given, **EXACT)
    assert found.tensors is not None and found.config is not None
    A, B = (found.tensors[f"{P}layers.0.experts.up.lora_{side}.weight"].numpy() for side in "AB")
    assert A.ndim == B.ndim == 3 and A.shape[0] == B.shape[0] == EXPERTS
    exact = cohorts.mean([c.deltas() for c in clients.values()])
    for e in range(EXPERTS):
        assert abs(B[e] @ A[e] - exact[f"layers.0.experts.up[{e}]"]).max() <= 1e-5
    assert found.config["target_modules"] == ["layers.0.experts.up", "layers.0.q"]
    assert "target_parameters" not in found.config


def test_the_previous_adapter_has_experts_too() -> None:
    clients = trained(6)
    before = clients.pop("c5")
    on_top = {
        name: factored(cohorts.plus(c.deltas(), before.deltas()), 2 * RANK, seed=3)
        for name, c in clients.items()
    }
    previous = (fused(before), CONFIG)
    given = pairs(on_top, r=2 * RANK, lora_alpha=4 * RANK)
    for option, exact in (
        ("previous", cohorts.mean([c.deltas() for c in on_top.values()])),
        ("initial", cohorts.mean([c.deltas() for c in clients.values()])),
    ):
        options: dict[str, Any] = {option: previous, **EXACT}
        found = clair_cli.merge(given, **options)
        assert found.tensors is not None
        written = unfused({n: t.numpy() for n, t in found.tensors.items()})
        assert cohorts.relative(written, exact) <= 1e-5


# What does not fit


def rejected(clients: Mapping[str, Any], **options: Any) -> dict[str, str]:
    report = clair_cli.inspect(clients, fail_on="never", **options).report
    return {c.name: c.reasons[0].text for c in report.clients if c.verdict == "rejected"}


def test_another_number_of_experts_or_other_parameters_reject_the_minority() -> None:
    clients = trained(6)
    given = pairs(clients)
    fewer = {m: shape for m, shape in SHAPES.items() if not m.endswith("[2]")}
    sides = [{m: side[m] for m in fewer} for side in (clients["c5"].A, clients["c5"].B)]
    given["few"] = (fused(cohorts.Client(*sides)), CONFIG)
    given["other"] = (
        fused(clients["c4"]),
        {**CONFIG, "target_parameters": ["experts.v", "experts.w"]},
    )
    found = rejected(given)
    assert set(found) == {"few", "other"}
    assert "2 experts of 'down_proj', 'gate_up_proj', 6 of" in found["few"]
    assert "3 experts of 'v', 'w'" in found["other"]
    # however the same parameters are spelt
    given = pairs(clients)
    given["c0"] = (given["c0"][0], {**CONFIG, "target_parameters": [
        "experts.gate_up_proj", "layers.0.mlp.experts.down_proj"]})  # fmt: skip
    assert not rejected(given)


@pytest.mark.parametrize("option", ["previous", "initial", "trust_adapter"])
def test_an_adapter_beside_the_clients_with_other_experts(option: str) -> None:
    clients = trained(6)
    own = clients.pop("c5")
    fewer = [{m: t for m, t in side.items() if not m.endswith("[2]")} for side in (own.A, own.B)]
    options: dict[str, Any] = {option: (fused(cohorts.Client(*fewer)), CONFIG)}
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(clair_cli.UsageError, match=f"{flag}: module .*2 experts of"):
        clair_cli.inspect(pairs(clients), **options)


def test_ranks_of_several_parameters_are_told_by_the_number_of_experts() -> None:
    """gate_up_proj has twice the rank, as transformers converts two fused projections."""
    clients = {}
    for name, client in trained(4).items():
        A = {m: np.vstack([a, a]) if m.startswith(UP) else a for m, a in client.A.items()}
        B = {m: np.hstack([b, b]) / 2 if m.startswith(UP) else b for m, b in client.B.items()}
        patterns = {field: {r".*\.gate_up_proj": n} for field, n in
                    (("rank_pattern", 2 * RANK), ("alpha_pattern", 4 * RANK))}  # fmt: skip
        clients[name] = (fused(cohorts.Client(A, B)), {**CONFIG, **patterns})
    found = clair_cli.merge(clients, **EXACT)
    assert found.tensors is not None
    written = unfused({n: t.numpy() for n, t in found.tensors.items()})
    exact = cohorts.mean([c.deltas() for c in trained(4).values()])
    assert cohorts.relative(written, exact) <= 1e-5


GOOD = fused(trained(1)["c0"])
CASES = [
    ({"r": 5, "lora_alpha": 5}, GOOD, "the number of experts can't be told from lora_A's rows"),
    ({"target_parameters": None}, GOOD, "target_parameters do not name them"),
    ({"target_parameters": ["other.up"]}, GOOD, "target_parameters do not name them"),
    ({"target_parameters": "experts.up"}, GOOD, "expected a list of names or null"),
    # of rank 8 and 4, with as many rows
    ({"rank_pattern": {"gate_up_proj": 2 * RANK}, "alpha_pattern": {"gate_up_proj": RANK}},
     GOOD, "can't be told"),
    ({}, {**GOOD, f"{P}{UP}[1].lora_A.weight": np.ones((RANK, 16)),
          f"{P}{UP}[1].lora_B.weight": np.ones((24, RANK))}, "two modules have this name"),
    ({}, {n.replace("base_layer.", "base_layer.out_proj."): t for n, t in GOOD.items()},
     "LoRA of multi-head attention"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "tensors", "words"), CASES, ids=[c[2][:24] for c in CASES])
def test_what_can_not_be_read_is_rejected(
    config: Mapping[str, Any], tensors: Mapping[str, Any], words: str
) -> None:
    given = {**pairs(trained(4)), "bad": (tensors, {**CONFIG, **config})}
    found = rejected(given)
    assert set(found) == {"bad"} and words in found["bad"]


@pytest.mark.parametrize(("limit", "bad"), [(2 * 7, False), (2 * 7 - 1, True)])
def test_each_expert_counts_as_two_tensors(limit: int, bad: bool) -> None:
    """Seven modules in six tensors; a file may claim a million experts."""
    found = rejected(pairs(trained(4)), limit={"tensors": limit})
    assert set(found) == ({"c0", "c1", "c2", "c3"} if bad else set())
    assert all("14 tensors, each expert's counted" in text for text in found.values())


def test_experts_of_their_own_and_fused_ones_do_not_go_together() -> None:
    """transformers 5 fused them: the gate and the up projection are one there."""
    clients = trained(5)
    given = pairs({n: clients[n] for n in ("c0", "c1", "c2")})
    for name in ("c3", "c4"):
        given[name] = (own_modules(clients[name]), clients[name].fields)
    found = rejected(given)
    assert set(found) == {"c3", "c4"}
    assert "there is no translation" in found["c3"]


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_other_formats_have_no_fused_experts(names: Any) -> None:
    with pytest.raises(clair_cli.UsageError, match=f"{names}'s format has no fused experts"):
        clair_cli.merge(pairs(trained(4)), tensor_names=names)


@pytest.mark.parametrize("names", ["peft", "kohya", "diffusers", "mlx"])
def test_they_are_not_converted_and_no_format_recommends_another(names: Any) -> None:
    save("one", fused(trained(1)["c0"]))
    with pytest.raises(clair_cli.InputRefused, match="PEFT's format alone, which the adapter is"):
        clair_cli.convert("one", "out", names)


def test_a_changed_file_loses_its_client() -> None:
    from tests.workflow.test_changes import at, flip_a_bit

    for name, client in trained(5).items():
        save(f"clients/{name}", fused(client))
    progress = at("comparing", Path("clients/c1"), flip_a_bit)
    report = clair_cli.inspect("clients", progress=progress).report
    assert [c.name for c in report.clients if c.verdict == "rejected"] == ["c1"]
