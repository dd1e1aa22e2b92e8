"""Clients in several formats in one round, and results in each of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import Client, clair, factored, low_rank, texts

# A U-Net's attention and a text encoder's: dotted path in the pipeline to (out, in).
UNET = {
    f"unet.{block}.attentions.0.transformer_blocks.0.attn1.{name}": shape
    for block in ("down_blocks.0", "up_blocks.1")
    for name, shape in (("to_q", (24, 16)), ("to_k", (20, 16)), ("to_out.0", (16, 24)))
}
TEXT = {f"text_encoder.text_model.encoder.layers.{n}.self_attn.q_proj": (18, 12) for n in range(2)}
EXACT = ("--rank", "full", "--dtype", "float32", "--allow-undetermined")
ALPHA = 3.0


def pipeline_clients(n_clients: int, modules: Mapping[str, Any]) -> cohorts.Clients:
    """Honest clients of rank 6 that share half of their update."""
    rng = np.random.default_rng(3)
    common = {m: low_rank(shape, 3, rng) for m, shape in modules.items()}
    clients = {}
    for k in range(n_clients):
        own = {m: low_rank(shape, 3, rng) for m, shape in modules.items()}
        deltas = {m: 0.7 * common[m] + 0.7 * own[m] for m in modules}
        clients[f"c{k}"] = factored(deltas, 6, {"lora_alpha": ALPHA}, seed=k)
    return clients


def kohya_module(module: str, te: str = "te") -> str:
    first, _, rest = module.partition(".")
    part = {"unet": "unet", "text_encoder": te, "text_encoder_2": "te2"}[first]
    return f"lora_{part}_{rest.replace('.', '_')}"


def kohya(client: Client, alpha: float | None = ALPHA, te: str = "te") -> dict[str, Any]:
    """A kohya file's tensors; without alphas, the factors are scaled instead."""
    tensors: dict[str, Any] = {}
    for module, a in client.A.items():
        name = kohya_module(module, te)
        scale = ALPHA / len(a) if alpha is None else 1.0
        tensors[f"{name}.lora_down.weight"] = a
        tensors[f"{name}.lora_up.weight"] = scale * client.B[module]
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha)
    return tensors


def diffusers_old(client: Client) -> dict[str, Any]:
    """Attention processors of the U-Net, as diffusers 0.17 wrote them; scale 1."""
    tensors = {}
    for module, a in client.A.items():
        stem, _, last = module.removesuffix(".0").rpartition(".")
        last = {"q_proj": "to_q"}.get(last, last)
        link = ".processor" if module.startswith("unet") else ""
        scale = ALPHA / len(a)
        tensors[f"{stem}{link}.{last}_lora.down.weight"] = a
        tensors[f"{stem}{link}.{last}_lora.up.weight"] = scale * client.B[module]
    return tensors


def diffusers_new(client: Client) -> dict[str, Any]:
    tensors = {f"{m}.lora_A.weight": a for m, a in client.A.items()}
    return tensors | {f"{m}.lora_B.weight": b for m, b in client.B.items()}


def part_fields(client: Client) -> dict[str, str]:
    """The header's config as diffusers writes it: one for each part, all in one object."""
    fields = {}
    for part in sorted({m.split(".")[0] for m in client.A}):
        fields |= {f"{part}.r": 6, f"{part}.lora_alpha": ALPHA, f"{part}.peft_type": "LORA"}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(fields)}


def write(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cohorts.safetensors(tensors, "F32", metadata or {"format": "pt"}))


def canonical(path: Path) -> cohorts.Deltas:
    """The dense update of any file that clair writes, by dotted module; numpy only."""
    file = next(p for p in sorted(path.iterdir()) if p.suffix == ".safetensors") if (
        path.is_dir()) else path  # fmt: skip
    tensors, metadata = cohorts.read_safetensors(file)
    if any(".lora_A." in name for name in tensors):
        text = metadata.get("lora_adapter_metadata")
        fields = (
            json.loads(text) if text else json.loads((path / "adapter_config.json").read_text())
        )
        plain = {name.rpartition(".")[2]: value for name, value in fields.items()}
        return cohorts.dense(tensors, plain)
    found = {}
    for name, up in tensors.items():
        if name.endswith(".lora_up.weight"):
            stem = name.removesuffix(".lora_up.weight")
            down = tensors[f"{stem}.lora_down.weight"]
            scale = float(tensors[f"{stem}.alpha"]) / len(down)
            (module,) = (
                m for m in (*UNET, *TEXT) if stem in (kohya_module(m), kohya_module(m, "te1"))
            )
            found[module] = scale * up @ down
    return found


MODULES = {**UNET, **TEXT}


def test_clients_of_every_format_merge_together(tmp_path: Path) -> None:
    clients = pipeline_clients(6, MODULES)
    folder = tmp_path / "clients"
    write(folder / "c0.safetensors", kohya(clients["c0"]))
    write(folder / "c1.safetensors", kohya(clients["c1"], None, "te1"))
    write(folder / "c2.safetensors", diffusers_old(clients["c2"]))
    write(folder / "c3.safetensors", diffusers_new(clients["c3"]), part_fields(clients["c3"]))
    cohorts.save_peft(folder / "c4", clients["c4"])
    cohorts.save_peft(folder / "c5", clients["c5"], names=cohorts.bare_names)
    result = clair("merge", folder, "-o", tmp_path / "m.safetensors", *EXACT)
    assert result.exit_code == 0, result.stderr
    report = cohorts.read_report(tmp_path / "m.report.json")
    assert set(cohorts.verdicts(report).values()) == {"benign"}
    assert {m["name"] for m in report["modules"]} == set(MODULES)
    warnings = "\n".join(texts(report["warnings"]))
    assert "modules of 'c0', 'c1' go by the others' names: 'lora_te_text_model_" in warnings
    assert "client 'c1': no alpha tensor in some modules: alpha = rank there" in warnings
    assert "client 'c2': no config: alpha = rank, as diffusers loads it" in warnings
    assert "the clients' formats differ (3 diffusers, 2 kohya, 1 peft): --tensor-names" in warnings
    # The same clients as PEFT folders give the same adapter.
    cohorts.save(tmp_path / "plain", clients)
    clair("merge", tmp_path / "plain", "-o", tmp_path / "p.safetensors", *EXACT)
    wanted = cohorts.read_dense(tmp_path / "p.safetensors")
    assert cohorts.relative(canonical(tmp_path / "m.safetensors"), wanted) <= 1e-6


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("out", ["m.safetensors", "m"])
def test_own_format_comes_back(tmp_path: Path, form: str, out: str) -> None:
    """Written in the clients' format by default, and read back as what was written."""
    clients = pipeline_clients(4, MODULES)
    for name, client in clients.items():
        path = tmp_path / "clients" / f"{name}.safetensors"
        if form == "kohya":
            write(path, kohya(client))
        elif form == "diffusers":
            write(path, diffusers_new(client), part_fields(client))
        else:
            cohorts.save_peft(tmp_path / "clients" / name, client)
    assert clair("merge", tmp_path / "clients", "-o", tmp_path / out, *EXACT).exit_code == 0
    wanted = canonical(tmp_path / out)
    assert wanted.keys() == MODULES.keys()
    report = cohorts.read_report(
        tmp_path / ("m.report.json" if out == "m.safetensors" else "m/report.json")
    )
    weights = {c["name"]: c["weight"] for c in report["clients"]}
    mean = cohorts.mean([c.deltas() for c in clients.values()], [weights[n] for n in clients])
    assert cohorts.relative(wanted, mean) <= 1e-6
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / out).rename(again / out)
    if out == "m":
        (again / "m/report.json").unlink()
    assert clair("merge", again, "-o", tmp_path / "n.safetensors", *EXACT).exit_code == 0
    assert cohorts.relative(canonical(tmp_path / "n.safetensors"), wanted) <= 1e-6


@pytest.mark.parametrize("wanted", ["kohya", "diffusers"])
@pytest.mark.parametrize("given", ["kohya", "diffusers"])
def test_the_format_asked_for(tmp_path: Path, given: str, wanted: str) -> None:
    clients = pipeline_clients(3, MODULES)
    for name, client in clients.items():
        tensors = kohya(client) if given == "kohya" else diffusers_old(client)
        write(tmp_path / "clients" / f"{name}.safetensors", tensors)
    for option in ((), ("--tensor-names", wanted), ("--keep-alpha", "--tensor-names", wanted)):
        out = tmp_path / f"m{len(option)}.safetensors"
        assert clair("merge", tmp_path / "clients", "-o", out, *option, *EXACT).exit_code == 0
    plain = canonical(tmp_path / "m0.safetensors")
    for file in ("m2.safetensors", "m3.safetensors"):
        assert cohorts.relative(canonical(tmp_path / file), plain) <= 1e-6
    names, metadata = cohorts.read_safetensors(tmp_path / "m3.safetensors")
    if wanted == "kohya":
        assert {n.split("_")[1] for n in names} == {"unet", "te"}
        assert metadata["ss_network_module"] == "networks.lora"
        assert float(metadata["ss_network_alpha"]) == pytest.approx(3 if given == "kohya" else 6)
    else:
        header = json.loads(metadata["lora_adapter_metadata"])
        assert {key.split(".")[0] for key in header} == {"unet", "text_encoder"}
        # as modules of any version of transformers end
        assert all(t.startswith("encoder.layers.") for t in header["text_encoder.target_modules"])


def test_a_peft_adapter_of_one_part(tmp_path: Path) -> None:
    """PEFT's format is one model's: the part's name goes, and several parts are refused."""
    for name, client in pipeline_clients(3, UNET).items():
        write(tmp_path / "one" / f"{name}.safetensors", kohya(client))
    for name, client in pipeline_clients(3, MODULES).items():
        write(tmp_path / "two" / f"{name}.safetensors", kohya(client))
    options = ("--tensor-names", "peft", *EXACT)
    assert clair("merge", tmp_path / "one", "-o", tmp_path / "m", *options).exit_code == 0
    assert cohorts.read_dense(tmp_path / "m").keys() == {m.removeprefix("unet.") for m in UNET}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" in cohorts.read_config(
        tmp_path / "m")["target_modules"]  # fmt: skip
    result = clair("merge", tmp_path / "two", "-o", tmp_path / "n", *options)
    assert result.exit_code == 2
    assert "the modules are of several: 'text_encoder', 'unet'" in result.stderr
    assert not (tmp_path / "n").exists()


UNWRITABLE = [
    (
        {"lora_unet_input_blocks_4_1_to_q": (6, 8)},
        "peft",
        "which underscores of kohya's names are dots can't be told",
    ),
    (
        {"lora_unet_input_blocks_4_1_to_q": (6, 8)},
        "diffusers",
        "which underscores of kohya's names are dots can't be told",
    ),
    ({"model.layers.0.q": (6, 8)}, "diffusers", "format needs the part of a pipeline"),
    ({"model.layers.0.q": (6, 8)}, "kohya", "format needs the part of a pipeline"),
    ({"unet.a.b_c": (6, 8), "unet.a_b.c": (6, 8)}, "kohya", "would both be called"),
]


@pytest.mark.parametrize(("shapes", "wanted", "words"), UNWRITABLE, ids=[u[2] for u in UNWRITABLE])
def test_names_that_a_format_has_not(
    tmp_path: Path, shapes: dict[str, Any], wanted: str, words: str
) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        tensors = {}
        for module, (rows, columns) in shapes.items():
            down, up = ("lora_down", "lora_up") if "lora_" in module else ("lora_A", "lora_B")
            tensors[f"{module}.{down}.weight"] = rng.standard_normal((2, columns))
            tensors[f"{module}.{up}.weight"] = rng.standard_normal((rows, 2))
        write(tmp_path / "clients" / f"c{k}.safetensors", tensors)
    options = ("--tensor-names", wanted, "--assume-alpha", "rank", *EXACT)
    result = clair("merge", tmp_path / "clients", "-o", tmp_path / "m.safetensors", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_one_client_can_not_decide_the_format(tmp_path: Path) -> None:
    """A module that the others' format can't name rejects the client that brings it."""
    clients = pipeline_clients(5, UNET)
    folder = tmp_path / "clients"
    for name in ("c0", "c1", "c2", "c3"):
        write(folder / f"{name}.safetensors", kohya(clients[name]))
    odd = diffusers_new(clients["c4"])
    odd |= {
        "evil.layer.lora_A.weight": np.ones((6, 4)),
        "evil.layer.lora_B.weight": np.ones((5, 6)),
    }
    write(folder / "c4.safetensors", odd)
    (folder / "c4.json").write_text('{"peft_type": "LORA", "r": 6, "lora_alpha": 3}')
    every = (tmp_path / "m.safetensors", *EXACT, "--modules", "union")
    assert clair("merge", folder, "-o", *every).exit_code == 0
    report = cohorts.read_report(tmp_path / "m.report.json")
    assert cohorts.verdicts(report)["c4"] == "rejected"
    assert "module 'evil.layer': few clients have it" in cohorts.reasons(report, "c4")
    names, _ = cohorts.read_safetensors(tmp_path / "m.safetensors")
    assert {name.split(".")[0] for name in names} == {kohya_module(m) for m in UNET}
    common = (tmp_path / "common.safetensors", *EXACT)
    assert clair("merge", folder, "-o", *common).exit_code == 0
    report = cohorts.read_report(tmp_path / "common.report.json")
    assert cohorts.verdicts(report)["c4"] == "benign"
    assert set(cohorts.read_safetensors(common[0])[0]) == set(names)


def given(client: Client, extra: Mapping[str, tuple[int, int]] | None = None) -> Any:
    """A client in memory under diffusers' names, with further modules of rank 6."""
    import torch

    generator = torch.Generator().manual_seed(1)
    state = {name: torch.tensor(value) for name, value in diffusers_new(client).items()}
    for module, (rows, columns) in (extra or {}).items():
        state[f"{module}.lora_A.weight"] = torch.randn(6, columns, generator=generator)
        state[f"{module}.lora_B.weight"] = torch.randn(rows, 6, generator=generator)
    return state, {"peft_type": "LORA", "r": 6, "lora_alpha": ALPHA}


def states_of(result: Any) -> set[str]:
    """The modules written."""
    return {name.rsplit(".lora_", 1)[0] for name in result.tensors}


@pytest.mark.parametrize("wanted", ["kohya", "peft"])
def test_one_client_of_the_format_asked_for_does_not_name_the_modules(wanted: str) -> None:
    import torch

    clients = pipeline_clients(5, UNET)
    states: dict[str, Any] = {name: given(client) for name, client in clients.items()}
    state, config = states["c4"]
    odd = {k.replace(".attentions.", ".module.attentions."): t for k, t in state.items()}
    if wanted == "kohya":
        names = {k: k.replace("lora_A", "lora_down").replace("lora_B", "lora_up") for k in odd}
        last: Any = ({names[k]: t for k, t in odd.items()}, None)
    else:  # the others are kohya's
        last = ({f"base_model.model.{k}": t for k, t in odd.items()}, config)
        for name, client in clients.items():
            states[name] = ({k: torch.tensor(v) for k, v in kohya(client).items()}, None)
    options: dict[str, Any] = {"tensor_names": wanted, "allow_undetermined": True}
    expected = states_of(clair_cli.merge(states, **options))
    result = clair_cli.merge({**states, "c4": last}, **options)
    assert not result.report.with_verdict("rejected")
    assert states_of(result) == expected


def test_one_client_can_not_name_the_encoders() -> None:
    """kohya's `lora_te1_` is for models that have a second text encoder, not for one client's."""
    clients = {n: given(c) for n, c in pipeline_clients(4, MODULES).items()}
    clients["c3"][0].update(given(Client({}, {}), {"text_encoder_2.x": (9, 5)})[0])
    result = clair_cli.merge(clients, tensor_names="kohya", allow_undetermined=True)
    names = {name.split("_text_model")[0] for name in states_of(result) if "_text_model" in name}
    assert names == {"lora_te"}
    for client in clients.values():
        client[0].update(given(Client({}, {}), {"text_encoder_2.x": (9, 5)})[0])
    result = clair_cli.merge(clients, tensor_names="kohya", allow_undetermined=True)
    names = {name.split("_text_model")[0] for name in states_of(result) if "_text_model" in name}
    assert names == {"lora_te1"}


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_a_client_left_out_brings_no_modules(tmp_path: Path, form: str) -> None:
    clients = pipeline_clients(6, UNET)
    states = {name: given(client) for name, client in clients.items()}
    bad = Client(clients["c5"].A, {m: -2 * b for m, b in clients["c5"].B.items()})
    states["c5"] = given(bad, {"unet.evil": (9, 5)})
    wanted = clair_cli.merge({n: s for n, s in states.items() if n != "c5"}, tensor_names=form)
    path = tmp_path / "m.safetensors"
    result = clair_cli.merge(states, path, tensor_names=form, modules="union")
    assert [c.name for c in result.report.with_verdict("contaminated")] == ["c5"]
    assert states_of(result) == states_of(wanted)
    assert result.config == wanted.config
    assert "evil" not in json.dumps(cohorts.read_safetensors(path)[1])
    (evil,) = [m for m in result.report.modules if m.name == "unet.evil"]
    assert evil.written is None
    assert not clair_cli.verify(path, states).differences
    refined = clair_cli.refine(states, tmp_path / "r", tensor_names=form, modules="union")
    assert refined.report.refined is not None
    assert canonical(tmp_path / "r" / "c0").keys() <= {*UNET, *(u[5:] for u in UNET)}


def test_a_client_unlike_the_previous_adapter_is_rejected() -> None:
    """It ended the round, or crashed it where another client had the module too."""
    clients = pipeline_clients(6, UNET)
    previous = given(clients["c0"], {"unet.x": (9, 8)})
    states = {name: given(client) for name, client in clients.items()}
    states["c5"] = given(clients["c5"], {"unet.x": (9, 5)})
    for more in ({}, {"unet.x": (9, 8)}):
        states["c4"] = given(clients["c4"], more)
        result = clair_cli.merge(states, previous=previous)
        (rejected,) = result.report.with_verdict("rejected")
        assert rejected.name == "c5"
        assert "has shape (9, 5), the previous adapter's has (9, 8)" in rejected.reasons[0].text
        assert "unet.x" in states_of(result)


def test_intersection_keeps_the_previous_adapter_where_some_lack_a_module() -> None:
    clients = pipeline_clients(4, UNET)
    previous = given(clients["c0"], {"unet.x": (9, 8)})
    states = {name: given(client) for name, client in clients.items()}
    states["c3"] = given(clients["c3"], {"unet.x": (9, 8)})
    states["c3"][0]["unet.x.lora_B.weight"] *= 3
    options: dict[str, Any] = {"rank": "full", "dtype": "float32", "allow_undetermined": True}
    result = clair_cli.merge(states, previous=previous, modules="intersection", **options)
    found = result.tensors["unet.x.lora_B.weight"] @ result.tensors["unet.x.lora_A.weight"]
    state = previous[0]
    wanted = ALPHA / 6 * state["unet.x.lora_B.weight"] @ state["unet.x.lora_A.weight"]
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-6


def test_one_client_can_not_part_the_others(tmp_path: Path) -> None:
    """Its spellings of the modules are outvoted."""
    clients = pipeline_clients(7, UNET)
    folder = tmp_path / "clients"
    for name in ("c0", "c1", "c2"):
        write(folder / f"{name}.safetensors", kohya(clients[name]))
    for name in ("c3", "c4", "c5"):
        write(
            folder / f"{name}.safetensors", diffusers_new(clients[name]), part_fields(clients[name])
        )
    odd = {name.replace("attentions.0", "attentions_0"): t
           for name, t in diffusers_new(clients["c6"]).items()}  # fmt: skip
    write(folder / "c6.safetensors", odd, part_fields(clients["c6"]))
    assert clair("merge", folder, "-o", tmp_path / "m.safetensors", *EXACT).exit_code == 0
    report = cohorts.read_report(tmp_path / "m.report.json")
    assert cohorts.verdicts(report) == {f"c{k}": "benign" for k in range(6)} | {"c6": "rejected"}
    assert {m["name"] for m in report["modules"]} == set(UNET)


def kohya_with(tmp_path: Path, bad: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Why one kohya client of five is rejected."""
    for name, client in pipeline_clients(5, UNET).items():
        tensors = kohya(client)
        if name == "c4":
            tensors |= bad
        write(tmp_path / "clients" / f"{name}.safetensors", tensors,
              metadata if name == "c4" else None)  # fmt: skip
    result = clair("merge", tmp_path / "clients", "-o", tmp_path / "m.safetensors", *EXACT)
    assert result.exit_code == 0, result.stderr
    report = cohorts.read_report(tmp_path / "m.report.json")
    rejected = [n for n, verdict in cohorts.verdicts(report).items() if verdict == "rejected"]
    assert rejected in ([], ["c4"])
    return cohorts.reasons(report, "c4") if rejected else "\n".join(texts(report["warnings"]))


STEM = kohya_module(next(iter(UNET)))
HEADERS = [
    ({}, {"ss_network_args": '{"algo": "loha"}'}, "LyCORIS algorithm 'loha'"),
    ({}, {"ss_network_args": '{"algo": "lokr"}'.ljust(100_000)}, "LyCORIS algorithm 'lokr'"),
    ({}, {"ss_network_args": '{"algo": "lokr"}'.ljust(100_001)}, "limit of 100,000"),
    ({}, {"ss_network_module": "networks.oft"}, "LyCORIS algorithm 'oft'"),
    ({}, {"ss_network_args": '{"dora_wd": "True"}'}, "DoRA (dora_wd)"),
    ({}, {"ss_network_args": '{"algo": 1, "algo": 2}'}, "gives the key 'algo' twice"),
    ({}, {"ss_network_args": '{"algo": "locon"}', "ss_network_dim": "99"},
     "ss_network_dim 99 is the rank of no module"),
    ({}, {"ss_network_dim": "1" + "0" * 400, "ss_network_alpha": "-1" + "0" * 400}, ""),
    ({f"{STEM}.dora_scale": np.ones((1, 4))}, {}, "DoRA not supported"),
    ({f"{STEM}.hada_w1_a": np.ones((1, 4))}, {}, "LoHa not supported"),
    ({f"{STEM}.alpha": np.array(0.0)}, {}, "is 0, which some loaders take for a zero update"),
    ({f"{STEM}.alpha": np.ones(2)}, {}, "has shape (2,)"),
    ({f"{STEM}.alpha": np.array(np.nan)}, {}, "1 NaN or Inf of 1 values"),
    ({"lora_unet_x.alpha": np.array(1.0)}, {}, "alpha without the factors it scales"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "metadata", "words"), HEADERS, ids=[h[2][:30] for h in HEADERS])
def test_kohya_files_that_are_not_plain(
    tmp_path: Path, bad: dict[str, Any], metadata: dict[str, str], words: str
) -> None:
    assert words in kohya_with(tmp_path, bad, metadata)


def test_a_config_beside_must_agree_with_the_alphas(tmp_path: Path) -> None:
    """To one in a hundred."""
    clients = pipeline_clients(7, UNET)
    folder = tmp_path / "clients"
    for name, client in clients.items():
        write(folder / f"{name}.safetensors", kohya(client, None if name == "c3" else ALPHA))
    fields = {"peft_type": "LORA", "r": 6, "lora_alpha": ALPHA}
    for name in ("c2", "c3"):
        (folder / f"{name}.json").write_text(json.dumps(fields))
    for name, alpha in (("c4", 99), ("c5", 1.009 * ALPHA), ("c6", 1.011 * ALPHA)):
        (folder / f"{name}.json").write_text(json.dumps({**fields, "lora_alpha": alpha}))
    clair("merge", folder, "-o", tmp_path / "m.safetensors", *EXACT)
    report = cohorts.read_report(tmp_path / "m.report.json")
    rejected = {n for n, verdict in cohorts.verdicts(report).items() if verdict == "rejected"}
    assert rejected == {"c3", "c4", "c6"}
    assert "no alpha, which means 6, for rank 6, a scale of 1" in cohorts.reasons(report, "c3")
    assert "but the config's scale is 16.5" in cohorts.reasons(report, "c4")


def test_the_cohorts_config_is_for_files_that_say_nothing_themselves(tmp_path: Path) -> None:
    """It overruled the config in a file's header, and had kohya's files rejected."""
    clients = pipeline_clients(6, UNET)
    folder = tmp_path / "clients"
    for name in ("c0", "c1"):
        write(folder / f"{name}.safetensors", kohya(clients[name]))
    write(folder / "c2.safetensors", kohya(clients["c2"], None))
    write(folder / "c3.safetensors", diffusers_new(clients["c3"]), part_fields(clients["c3"]))
    fields = {"peft_type": "LORA", "r": 6, "lora_alpha": 30}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    for name in ("c4", "c5"):
        halved = {
            k: v * 0.1 if "lora_B" in k else v for k, v in diffusers_new(clients[name]).items()
        }
        write(folder / f"{name}.safetensors", halved)
    assert clair("merge", folder, "-o", tmp_path / "m.safetensors", *EXACT).exit_code == 0
    report = cohorts.read_report(tmp_path / "m.report.json")
    assert "rejected" not in cohorts.verdicts(report).values()
    weights = {c["name"]: c["weight"] for c in report["clients"]}
    mean = cohorts.mean([c.deltas() for c in clients.values()], [weights[n] for n in clients])
    assert cohorts.relative(canonical(tmp_path / "m.safetensors"), mean) <= 1e-5


def test_kohya_clients_in_memory_and_the_previous_round(tmp_path: Path) -> None:
    clients = pipeline_clients(4, UNET)
    import torch

    states = {
        name: ({k: torch.tensor(v) for k, v in kohya(client).items()}, None)
        for name, client in clients.items()
    }
    first = clair_cli.merge(states, tmp_path / "first", rank="full", dtype="float32")
    assert first.tensors is not None
    assert all(name.startswith("lora_unet_") for name in first.tensors)
    wanted = canonical(tmp_path / "first")
    # The next round: PEFT clients that are the first result plus their own; kohya's is previous.
    for k, (name, client) in enumerate(pipeline_clients(4, UNET).items()):
        deltas = {m: wanted[m] + 0.1 * d for m, d in client.deltas().items()}
        cohorts.save_peft(tmp_path / "next" / name, factored(deltas, 16, seed=k))
    result = clair(
        "merge", tmp_path / "next", "-o", tmp_path / "m", "--previous", tmp_path / "first", *EXACT
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert cohorts.read_dense(tmp_path / "m").keys() == UNET.keys()
    off = cohorts.relative(cohorts.read_dense(tmp_path / "m"), wanted)
    assert 0.01 < off < 0.5
    assert not math.isnan(off)


def test_one_client_can_not_part_a_name_from_the_others() -> None:
    """Its name for a module is as common as another client's: both are the others' module."""
    clients = pipeline_clients(7, UNET)
    honest = {name: given(client) for name, client in clients.items()}
    bare = {
        n: ({f"base_model.model.{k.removeprefix('unet.')}": t for k, t in s.items()}, c)
        for n, (s, c) in honest.items()
    }
    import torch

    spelled = {
        n: ({k: torch.tensor(v) for k, v in kohya(c).items()}, None) for n, c in clients.items()
    }
    for others, change in (
        (bare, lambda key: key.replace("unet.", "text_encoder.")),
        (spelled, lambda key: key.replace("attentions.0", "attentions_0")),
    ):
        state, config = honest["c6"]
        odd = ({change(key): tensor for key, tensor in state.items()}, config)
        cohort = {**others, "c5": honest["c5"], "c6": odd}
        report = clair_cli.inspect(cohort).report
        assert not report.with_verdict("rejected")
        assert {m.name for m in report.modules} == {
            m.name for m in clair_cli.inspect(others).report.modules
        }
        # One that has both names in its file decides nothing either.
        both = ({**state, **odd[0]}, config)
        report = clair_cli.inspect({**cohort, "c6": both}).report
        assert not [c for c in report.with_verdict("rejected") if c.name != "c6"]
        assert {m.name for m in report.modules if m.n_updates > 1} == {
            m.name for m in clair_cli.inspect(others).report.modules
        }


def test_peft_output_of_clients_with_one_and_with_two_models() -> None:
    """A text encoder's modules are not written as the U-Net's."""
    import torch

    clients = pipeline_clients(5, MODULES)
    states: dict[str, Any] = {}
    for name, client in pipeline_clients(4, UNET).items():
        state, config = given(client)
        states[name] = (
            {f"base_model.model.{k.removeprefix('unet.')}": t for k, t in state.items()}, config
        )  # fmt: skip
    states["c4"] = ({k: torch.tensor(v) for k, v in kohya(clients["c4"]).items()}, None)
    result = clair_cli.merge(states, modules="union", allow_undetermined=True)
    assert not any("text_model" in name for name in states_of(result))
    (rejected,) = result.report.with_verdict("rejected")
    assert rejected.name == "c4"
    assert "PEFT's format is that of one model" in rejected.reasons[0].text
    assert "'text_encoder', 'unet'" in rejected.reasons[0].text
    for modules in ("common", "intersection"):
        result = clair_cli.merge(states, modules=modules, allow_undetermined=True)
        assert not result.report.with_verdict("rejected")


def test_names_that_differ_in_module_or_part_alone(tmp_path: Path) -> None:
    """A wrapper's `module`, or a pipeline's part, in some clients' names only."""
    clients = pipeline_clients(4, UNET)

    def renamed(client: Client, change: Any) -> Client:
        return Client(
            {change(m): a for m, a in client.A.items()},
            {change(m): b for m, b in client.B.items()},
            client.config,
        )

    changes = {
        "c0": lambda m: m,
        "c1": lambda m: m,
        "c2": lambda m: m.replace(".attentions.", ".module.attentions."),
        "c3": lambda m: m.removeprefix("unet."),
    }
    for name, change in changes.items():
        cohorts.save_peft(tmp_path / "clients" / name, renamed(clients[name], change))
    assert clair("merge", tmp_path / "clients", "-o", tmp_path / "m", *EXACT).exit_code == 0
    report = cohorts.read_report(tmp_path / "m/report.json")
    assert {m["name"] for m in report["modules"]} == set(UNET)
    assert all(m["absent"] == [] for m in report["modules"])
    assert any(
        "modules of 'c2', 'c3' go by the others' names" in w for w in texts(report["warnings"])
    )


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_text_encoders_of_two_versions_of_transformers(form: str) -> None:
    """Its layers are in `text_model` or not, in either format; most clients' names are written."""
    import torch

    clients = pipeline_clients(5, MODULES)
    states: dict[str, Any] = {name: given(client) for name, client in clients.items()}
    if form == "kohya":
        for name, client in clients.items():
            states[name] = ({k: torch.tensor(v) for k, v in kohya(client).items()}, None)
    for name, old in (("c3", "text_model."), ("c4", "text_model_")):
        source = given(clients["c3"]) if name == "c3" else states["c4"]
        state = {k.replace(old, "").replace("text_model.", ""): t for k, t in source[0].items()}
        states[name] = (state, source[1])
    result = clair_cli.merge(states, allow_undetermined=True)
    assert not result.report.with_verdict("rejected")
    assert all(module.absent == () for module in result.report.modules)
    assert all("text_model" in name for name in states_of(result) if "self_attn" in name)


def test_refined_adapters_keep_the_format(tmp_path: Path) -> None:
    for name, client in pipeline_clients(4, UNET).items():
        write(tmp_path / "clients" / f"{name}.safetensors", kohya(client))
    result = clair("refine", tmp_path / "clients", "-o", tmp_path / "r", "--rank", "full")
    assert result.exit_code == 0, result.stderr
    for name in ("c0", "c3"):
        assert canonical(tmp_path / "r" / name).keys() == UNET.keys()
        assert not (tmp_path / "r" / name / "adapter_config.json").exists()
