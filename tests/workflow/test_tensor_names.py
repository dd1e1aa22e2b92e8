"""Where names and scale go, so that the readers of a result find them; one round of mixed names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clair_cli
from tests import cohorts
from tests.cohorts import Client, clair
from tests.workflow.test_formats import (
    EXACT,
    TEXT,
    UNET,
    canonical,
    diffusers_new,
    diffusers_old,
    kohya,
    part_fields,
    pipeline_clients,
    write,
)

PREFIX = "base_model.model."


def names_in(path: Path) -> set[str]:
    return set(cohorts.read_safetensors(path)[0])


def test_a_peft_folder_has_the_prefix_whatever_the_clients_have(tmp_path: Path) -> None:
    """A file that stands alone is named as most clients' are."""
    folder = cohorts.save(tmp_path / "clients", cohorts.honest(4), names=cohorts.bare_names)
    for out in ("m", "m.safetensors"):
        assert clair("merge", folder, "-o", tmp_path / out, *EXACT).exit_code == 0
    assert clair("refine", folder, "-o", tmp_path / "r", *EXACT).exit_code == 0
    for path in (tmp_path / "m", tmp_path / "r" / "c0"):
        names = names_in(path / "adapter_model.safetensors")
        assert {name.startswith(PREFIX) for name in names} == {True}
    names = names_in(tmp_path / "m.safetensors")
    assert {name.startswith(PREFIX) for name in names} == {False}
    for path in ("m", "m.safetensors", "r"):
        assert not clair_cli.verify(tmp_path / path, folder).differences


def test_adapters_in_memory_keep_the_clients_names() -> None:
    import torch

    states = {
        name: ({cohorts.bare_names(s, m): torch.tensor(t) for s, factors in
                (("A", c.A), ("B", c.B)) for m, t in factors.items()}, c.fields)
        for name, c in cohorts.honest(4).items()
    }  # fmt: skip
    result = clair_cli.merge(states)
    assert result.tensors is not None
    assert not any(name.startswith(PREFIX) for name in result.tensors)


def bare(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}


NAMINGS: dict[str, Callable[[Client], dict[str, Any]]] = {
    "old": diffusers_old,
    "old, bare": lambda client: bare(diffusers_old(client)),
    "new": diffusers_new,
    "new, bare": lambda client: bare(diffusers_new(client)),
    "kohya": kohya,
}


def write_naming(path: Path, naming: str, client: Client) -> None:
    metadata = part_fields(client) if naming == "new" else None
    if naming == "new, bare":
        fields = {"r": 6, "lora_alpha": client.fields["lora_alpha"], "peft_type": "LORA"}
        metadata = {"lora_adapter_metadata": json.dumps(fields)}
    write(path, NAMINGS[naming](client), metadata)


@pytest.mark.parametrize("wanted", ["auto", "peft", "diffusers", "kohya"])
@pytest.mark.parametrize("others", ["old, bare", "new", "new, bare", "kohya"])
@pytest.mark.parametrize("most", ["old", "old, bare"])
def test_a_round_of_two_namings_is_written_in_every_format(
    tmp_path: Path, most: str, others: str, wanted: str
) -> None:
    """Each of them failed, and each message recommended another."""
    clients = pipeline_clients(4, UNET)
    for k, (name, client) in enumerate(clients.items()):
        naming = most if k < 2 else others
        write_naming(tmp_path / "clients" / f"{name}.safetensors", naming, client)
    out = tmp_path / "m.safetensors"
    options = ("--tensor-names", wanted, *EXACT)
    result = clair("merge", tmp_path / "clients", "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    found = {f"unet.{m.removeprefix('unet.')}": delta for m, delta in canonical(out).items()}
    mean = cohorts.mean([c.deltas() for c in clients.values()])
    assert cohorts.relative(found, mean) <= 1e-5  # halves would be 0.5 off
    names = names_in(out)
    if wanted == "diffusers":
        assert {name.startswith("unet.") for name in names} == {True}
    if wanted == "kohya":
        assert {name.startswith("lora_unet_") for name in names} == {True}


@pytest.mark.parametrize("own", [1, 3])
def test_a_denoiser_has_one_name_in_a_file(tmp_path: Path, own: int) -> None:
    """diffusers takes a file with some `diffusion_model` for one that has nothing else."""
    names = [f"layers.{k}.attention.to_q" for k in range(4)]
    rng = np.random.default_rng(0)
    common = {n: cohorts.low_rank((8, 6), 2, rng) for n in names}
    for k in range(4):
        part, mine = ("diffusion_model", names[-own:]) if k % 2 else ("transformer", names[:-own])
        client = cohorts.factored({n: common[n] for n in {*mine, names[0]}}, 2, seed=k)
        tensors = {f"{part}.{n}": t for n, t in diffusers_new(client).items()}
        write(tmp_path / "clients" / f"c{k}.safetensors", tensors)
    out = tmp_path / "m.safetensors"
    options = ("--modules", "union", "--fresh", *EXACT)
    result = clair("merge", tmp_path / "clients", "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    modules = {name.split(".lora_")[0] for name in names_in(out)}
    assert {module.split(".", 1)[1] for module in modules} == set(names)
    assert len({module.split(".")[0] for module in modules}) == 1


def test_the_message_names_formats_that_work_and_says_where_none_does(tmp_path: Path) -> None:
    """A language model, alone and with a text encoder beside it."""
    rng = np.random.default_rng(0)
    modules = {"model.layers.0.q_proj": (8, 6), next(iter(TEXT)): (18, 12)}
    for part, folder in ((1, "one"), (2, "two")):
        for k in range(3):
            tensors = {}
            for module, (rows, columns) in list(modules.items())[:part]:
                tensors[f"{module}_lora.down.weight" if part == 2 else
                        f"{module}.lora_A.weight"] = rng.standard_normal((2, columns))  # fmt: skip
                tensors[f"{module}_lora.up.weight" if part == 2 else
                        f"{module}.lora_B.weight"] = rng.standard_normal((rows, 2))  # fmt: skip
            write(tmp_path / folder / f"c{k}.safetensors", tensors)
    every = ("--assume-alpha", "rank", *EXACT)
    out = tmp_path / "m.safetensors"
    result = clair("merge", tmp_path / "one", "-o", out, "--tensor-names", "kohya", *every)
    assert (result.exit_code, "fix       give --tensor-names peft\n" in result.stderr) == (2, True)
    for wanted in ("auto", "peft", "diffusers", "kohya"):
        result = clair("merge", tmp_path / "two", "-o", out, "--tensor-names", wanted, *every)
        assert result.exit_code == 2
        assert "no format has a name for every module: leave some clients out" in result.stderr


def with_alphas(client: Client, alpha: float, prefix: str) -> dict[str, Any]:
    tensors = {f"{prefix}{m}.lora_A.weight": a for m, a in client.A.items()}
    tensors |= {f"{prefix}{m}.lora_B.weight": b for m, b in client.B.items()}
    return tensors | {f"{prefix}{m}.alpha": np.array(alpha) for m in client.A}


@pytest.mark.parametrize("prefix", ["", PREFIX, "unet.", "diffusion_model."])
@pytest.mark.parametrize("with_alpha", [2, 1])
def test_a_scale_is_written_where_the_clients_have_it(
    tmp_path: Path, prefix: str, with_alpha: int
) -> None:
    """Of four clients at least two: half of them is enough, fewer is not. A `diffusion_model` has
    no other place for it. Readers of alpha tensors took seven times the delta weight."""
    clients = cohorts.honest(4)
    for k, (name, client) in enumerate(clients.items()):
        tensors = with_alphas(client, 42.0, prefix)
        if k >= with_alpha:
            tensors = {n: t for n, t in tensors.items() if not n.endswith(".alpha")}
        path = tmp_path / "clients" / f"{name}.safetensors"
        write(path, tensors)
        path.with_suffix(".json").write_text('{"peft_type": "LORA", "r": 6, "lora_alpha": 42}')
    out, options = tmp_path / "m.safetensors", ("--keep-alpha", "--rank", "6", *EXACT[2:])
    assert clair("merge", tmp_path / "clients", "-o", out, *options).exit_code == 0
    tensors, metadata = cohorts.read_safetensors(out)
    alphas = {float(t) for name, t in tensors.items() if name.endswith(".alpha")}
    inside = with_alpha == 2 or prefix == "diffusion_model."
    assert alphas == ({42.0} if inside else set())
    header = "lora_adapter_metadata" in metadata
    # diffusers' loaders refuse a config beside alphas; others take either
    assert header == (not inside or prefix in ("", PREFIX))
    assert not clair_cli.verify(out, tmp_path / "clients").differences
    # A folder's config says it, and PEFT has no alpha tensors.
    if prefix in ("", PREFIX):
        assert clair("merge", tmp_path / "clients", "-o", tmp_path / "f", *options).exit_code == 0
        names = names_in(tmp_path / "f" / "adapter_model.safetensors")
        assert not any(name.endswith(".alpha") for name in names)
        assert cohorts.read_config(tmp_path / "f")["lora_alpha"] == 42
