"""Rounds with a previous adapter, beside the same updates given without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import clair_cli
from tests import cohorts
from tests.cohorts import texts

Pair = tuple[Tensor, Tensor]
Modules = Mapping[str, Pair]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def key(module: str, side: str) -> str:
    return f"base_model.model.layers.0.self_attn.{module}.lora_{side}.weight"


def adapter(modules: Modules) -> tuple[dict[str, Tensor], dict[str, object]]:
    """As PEFT has it, of scaling 1."""
    ranks = {m: len(A) for m, (A, _) in modules.items()}
    config = {
        "peft_type": "LORA", "r": max(ranks.values()), "lora_alpha": max(ranks.values()),
        "target_modules": list(modules), "rank_pattern": ranks, "alpha_pattern": ranks,
    }  # fmt: skip
    state = {
        key(m, side): t for m, pair in modules.items() for side, t in zip("AB", pair, strict=True)
    }
    return state, config


def cohort(
    own: Mapping[str, int], before: Mapping[str, int], shape: tuple[int, int], lacking: str = ""
) -> tuple[dict[str, dict[str, Pair]], dict[str, Pair]]:
    """Updates that share two output directions, but for the first; and what they are on top of.

    Args:
        own, before: ranks by module.
        lacking: a module that the last client has not.
    """
    g = torch.Generator().manual_seed(0)

    def pair(rank: int) -> Pair:
        A, B = torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g)
        return A, B

    previous = {m: pair(rank) for m, rank in before.items()}
    shared = {m: pair(2)[1] for m in own}
    clients: dict[str, dict[str, Pair]] = {}
    for k in range(7):
        modules = {}
        for m, rank in own.items():
            A, B = pair(rank)
            B *= 0.3
            if k:
                B[:, :2] += shared[m]
            modules[m] = A, B
        if k == 6:
            modules.pop(lacking, None)
        clients[f"c{k}"] = modules
    return clients, previous


def on_top(clients: Mapping[str, Modules], previous: Modules) -> dict[str, dict[str, Pair]]:
    return {
        name: {
            m: (torch.cat([A, previous[m][0]]), torch.cat([B, previous[m][1]], dim=1))
            if m in previous
            else (A, B)
            for m, (A, B) in modules.items()
        }
        for name, modules in clients.items()
    }


@pytest.mark.parametrize(
    ("own", "before", "shape", "lacking", "atol"),
    [
        pytest.param((4, 4, 4, 4), (4, 4, 4, 4), (48, 40), "", 1e-7, id="one rank"),
        pytest.param((12, 4, 8, 2), (0, 4, 2, 5), (48, 40), "", 1e-7, id="ranks that sum to one"),
        pytest.param((4, 5, 6, 4), (5, 3, 0, 3), (48, 40), "k_proj", 1e-7, id="a module lacking"),
        pytest.param((6, 12, 10, 8), (14, 8, 10, 12), (200, 160), "", 1e-2, id="sketched"),
        pytest.param(
            (6, 12, 10, 8), (24, 40, 32, 36), (300, 280), "v_proj", 1e-2, id="overcomplete"
        ),
    ],
)
def test_clients_are_judged_by_what_they_added(
    own: tuple[int, ...], before: tuple[int, ...], shape: tuple[int, int], lacking: str, atol: float
) -> None:
    """Tables of pairs and cores are estimates from some size on, and P changes the estimates."""
    ranks = {m: rank for m, rank in zip(MODULES, before, strict=True) if rank}
    clients, previous = cohort(dict(zip(MODULES, own, strict=True)), ranks, shape, lacking)
    added = {name: adapter(modules) for name, modules in clients.items()}
    given = {name: adapter(modules) for name, modules in on_top(clients, previous).items()}
    found = clair_cli.inspect(given, previous=adapter(previous)).report
    exact = clair_cli.inspect(added).report
    assert found.cohort.stacking == exact.cohort.stacking == "output"
    assert [c.verdict for c in found.clients] == [c.verdict for c in exact.clients]
    assert [c.verdict for c in found.clients] == ["contaminated"] + ["benign"] * 6
    for one, other in zip(found.clients, exact.clients, strict=True):
        for name in ("loading", "loading_se", "similarity"):
            values = getattr(one.scores, name), getattr(other.scores, name)
            assert values[0] == pytest.approx(values[1], rel=0.0, abs=atol)
        norms = [[m.norm for m in c.modules.values()] for c in (one, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-9)


@pytest.mark.parametrize("rank", [2, 20, 64])
@pytest.mark.parametrize("shape", [(300, 280), (700, 640)])
def test_a_client_that_is_as_before_has_no_delta_weight(rank: int, shape: tuple[int, int]) -> None:
    """At ranks at which a client's components and the subtracted ones are rounded differently, and
    in an over-complete stack."""
    ranks = dict.fromkeys(MODULES[:2], rank)
    clients, previous = cohort(ranks, ranks, shape)
    clients = on_top(clients, previous) | {"c3": dict(previous)}
    given = {name: adapter(modules) for name, modules in clients.items()}
    (same,) = (
        c
        for c in clair_cli.inspect(given, previous=adapter(previous)).report.clients
        if c.name == "c3"
    )
    assert (same.verdict, [r.code for r in same.reasons]) == ("suspicious", ["no_update"])
    assert {m.norm for m in same.modules.values()} == {0.0}


def remarks(clients: Mapping[str, Modules], previous: Modules) -> str:
    """What is said of the previous adapter."""
    given = {name: adapter(modules) for name, modules in clients.items()}
    warnings = clair_cli.inspect(given, previous=adapter(previous)).report.warnings
    return " ".join(warning for warning in texts(warnings) if "--previous" in warning)


@pytest.mark.parametrize("left_out", [("c0",), ("c0", "c1")])
def test_the_clients_own_merge_is_not_what_they_started_from(left_out: tuple[str, ...]) -> None:
    clients, _ = cohort(dict.fromkeys(MODULES, 4), {}, (48, 40))
    given = {name: adapter(modules) for name, modules in clients.items()}
    merged = clair_cli.merge(given, exclude=left_out, rank="full", allow_undetermined=True)
    assert merged.tensors is not None
    previous = {m: (merged.tensors[key(m, "A")], merged.tensors[key(m, "B")]) for m in MODULES}
    assert "cancels out" in remarks(clients, previous)


@pytest.mark.parametrize("opposite", [0, 1, 2, 3])
def test_opposite_clients_are_no_sign_of_a_wrong_previous_adapter(opposite: int) -> None:
    ranks = dict.fromkeys(MODULES, 4)
    clients, previous = cohort(ranks, ranks, (48, 40))
    for k in range(opposite):
        clients[f"c{6 - k}"] = {m: (A, -B) for m, (A, B) in clients[f"c{6 - k}"].items()}
    assert remarks(on_top(clients, previous), previous) == ""
    if opposite == 1:
        three = {name: clients[name] for name in ("c4", "c5", "c6")}
        assert remarks(on_top(three, previous), previous) == ""


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_clients_that_started_from_another_adapter(size: float) -> None:
    """However large the updates are; some clients may well have started from another one, and one
    lacks a module. All of a fresh start share what is taken away from them."""
    ranks = dict.fromkeys(MODULES, 4)
    clients, previous = cohort(ranks, ranks, (48, 40), lacking="q_proj")
    clients = {n: {m: (A, size * B) for m, (A, B) in c.items()} for n, c in clients.items()}
    right = on_top(clients, previous)
    assert remarks(right, previous) == ""
    assert remarks({**right, **{n: clients[n] for n in ("c1", "c4", "c5")}}, previous) == ""
    assert "have little of the --previous adapter in them" in remarks(clients, previous)


def test_a_previous_adapter_of_zeros_is_in_everybody() -> None:
    ranks = dict.fromkeys(MODULES, 4)
    clients, previous = cohort(ranks, ranks, (48, 40))
    assert remarks(clients, {m: (A, 0.0 * B) for m, (A, B) in previous.items()}) == ""


def test_the_remarks_read_no_client_again(tmp_path: Path) -> None:
    """They follow from norms that were measured when the clients were compared."""
    folder = cohorts.save(tmp_path / "clients", cohorts.honest(5))
    previous = cohorts.save_peft(tmp_path / "previous", cohorts.unrelated(7))
    expected = clair_cli.inspect(folder, previous=previous).report
    assert any("have little of the --previous adapter" in t for t in texts(expected.warnings))
    file = folder / "c2" / "adapter_model.safetensors"

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "judging" and done == 0:
            file.unlink()

    assert clair_cli.inspect(folder, previous=previous, progress=progress).report == expected
    assert not file.exists()
