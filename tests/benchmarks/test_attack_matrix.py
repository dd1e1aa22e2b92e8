"""Attacks on files, cohorts with attackers in them, and what a cell of the matrix says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("peft")
pytest.importorskip("transformers")

import clair_cli
from benchmarks.attacks import attacks, rounds
from benchmarks.attacks import matrix as attack_matrix

pytestmark = pytest.mark.loaders  # see tests/conftest.py

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 3, "lora_alpha": 6,
    "use_rslora": False, "fan_in_fan_out": False, "target_modules": ["a", "b"],
    "rank_pattern": {}, "alpha_pattern": {}, "bias": "none", "task_type": "CAUSAL_LM",
}  # fmt: skip
SHAPES = {"base_model.model.x.a": (7, 5), "base_model.model.x.b": (6, 9)}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def members(count: int = 6) -> list[Any]:
    made = []
    for index in range(count):
        state = {}
        for number, (name, (out, columns)) in enumerate(SHAPES.items()):
            seed = 10 * index + number
            state[f"{name}.lora_A.weight"] = random(3, columns, seed=seed).float()
            state[f"{name}.lora_B.weight"] = random(out, 3, seed=seed + 5).float()
        made.append((f"benign-{index:02d}", state, dict(CONFIG), False))
    return made


@pytest.mark.parametrize("name", ["factors-up", "factors-down", "copy-gauge"])
def test_factors_change_and_the_update_does_not(name: str) -> None:
    before, after = members(), attacks.attacked(members(), name, 2)
    same = before[-1] if name != "copy-gauge" else before[0]
    assert after[-1][3] is (name == "copy-gauge")
    wanted, got = (attacks.stack([one]) for one in (same, after[-1]))
    for key in wanted:
        assert torch.allclose(wanted[key], got[key], rtol=1e-4, atol=1e-4)
    b = next(key for key in same[1] if ".lora_B." in key)
    assert not torch.allclose(after[-1][1][b], same[1][b])


# What others may have too: a client that alone has it counts with its LoRA.
HEADS = ["smuggled-head", "smuggled-saved", "smuggled-bias"]


@pytest.mark.parametrize("name", HEADS)
def test_a_few_clients_decide_no_head(name: str) -> None:
    made = attacks.attacked(members(), name, 2)
    clients = {one[0]: (one[1], one[2]) for one in made}
    result = clair_cli.merge(clients, allow_undetermined=True)  # they share nothing
    assert result.tensors is not None
    assert not result.report.with_verdict("rejected")
    assert all("lora_A" in key or "lora_B.weight" in key for key in result.tensors)


@pytest.mark.parametrize(
    "name",
    [n for n in attacks.FILES if n.startswith(("smuggled", "infinite", "nan")) and n not in HEADS],
)
def test_unreadable_clients_are_rejected_and_the_others_are_not(name: str) -> None:
    made = attacks.attacked(members(), name, 2)
    clients = {one[0]: (one[1], one[2]) for one in made}
    report = clair_cli.inspect(clients).report
    assert {c.name for c in report.with_verdict("rejected")} == {one[0] for one in made if one[3]}


@pytest.mark.parametrize(
    ("name", "factor"), [("config-alpha", 100.0), ("config-rslora", 3**0.5), ("copy-scaled", 10.0)]
)
def test_configuration_boosts_the_update(name: str, factor: float) -> None:
    before, after = members(), attacks.attacked(members(), name, 2)
    rival = before[0] if name == "copy-scaled" else before[-1]
    wanted, got = attacks.stack([rival]), attacks.stack([after[-1]])
    for key in wanted:
        assert torch.allclose(factor * wanted[key], got[key], rtol=1e-5)


def test_one_module_is_boosted_by_its_pattern() -> None:
    plain, boosted = members(4), attacks.attacked(members(4), "config-pattern", 1)
    shown = clair_cli.inspect({one[0]: (one[1], one[2]) for one in boosted}).report
    before = clair_cli.inspect({one[0]: (one[1], one[2]) for one in plain}).report
    ratios = [
        next(c for c in shown.clients if c.name == "attacker-00").modules[name].norm / module.norm
        for name, module in next(c for c in before.clients if c.name == "benign-03").modules.items()
    ]
    assert sorted(ratios) == pytest.approx([1.0, 100.0], rel=1e-5)


@pytest.mark.parametrize("name", ["flip-mean", "copy-bytes", "backdoor-bounded"])
def test_only_the_last_clients_are_replaced(name: str) -> None:
    before, after = members(), attacks.attacked(members(), name, 2)
    assert [one[3] for one in after] == [False] * 4 + [True] * 2
    assert [one[0] for one in after[:4]] == [one[0] for one in before[:4]]
    assert len({one[0] for one in after}) == 6


def test_the_direction_given_is_the_one_used() -> None:
    direction = {name: random(*shape, seed=9) for name, shape in SHAPES.items()}
    made = attacks.stack(attacks.attacked(members(), "backdoor-bounded", 2, direction=direction))
    for name, goal in direction.items():
        got = made[name][-1]
        assert float((got * goal).sum() / got.norm() / goal.norm()) == pytest.approx(1.0)


def alike(count: int, modules: int = 6, shared: float = 1.0) -> list[Any]:
    """Members of rank 2 with a common update of norm ``shared`` and own ones of norm 1."""
    made = []
    for index in range(count):
        state = {}
        for number in range(modules):
            name = f"base_model.model.x.l{number}.a"
            common, own = (
                random(*shape, seed=seed) / random(*shape, seed=seed).norm()
                for shape, seed in (((8, 6), number), ((8, 6), 100 + 10 * index + number))
            )
            b, a = attacks.factors(shared * common + own)
            state[f"{name}.lora_A.weight"] = a.float()
            state[f"{name}.lora_B.weight"] = b.float()
        config = CONFIG | {"r": 6, "lora_alpha": 6, "target_modules": ["a"]}
        made.append((f"benign-{index:02d}", state, config, False))
    return made


def test_a_round_counts_who_was_found() -> None:
    made = attacks.attacked(alike(9), "flip-own", 3)
    found = rounds.judged(made, {"all": lambda points, bad: points.mean(0)})
    assert (found.outcome, found.honest, found.bad) == ("judged", 6, 3)
    assert (found.hits, found.suspicious_bad) == (3, 0)
    assert (found.false_flags, found.suspicious_honest) == (0, 0)
    assert found.exact
    assert found.clear
    assert found.error < 1e-6
    assert found.peer_errors["all"] > 0.3


def test_rejected_clients_are_hits_and_infinity_is_not_merged() -> None:
    made = attacks.attacked(alike(8), "infinite", 2)
    found = rounds.judged(made, {"all": lambda points, bad: points.mean(0)})
    assert (found.hits, found.bad, found.exact) == (2, 2, True)
    assert found.error < 1e-6
    assert found.peer_errors["all"] == math.inf


def test_a_refused_round_has_no_merge() -> None:
    found = rounds.judged(attacks.attacked(alike(4), "infinite", 3))
    assert found.outcome == "refused"
    assert found.error == math.inf
    assert not found.exact


@pytest.mark.parametrize(("name", "clear"), [("flip-own", True), ("copy-gauge", False)])
def test_clear_is_about_similarity(name: str, clear: bool) -> None:
    assert rounds.is_clear(attacks.attacked(alike(8), name, 2)) is clear


def test_the_pattern_counts_in_the_delta_weight() -> None:
    plain = attacks.stack(members(4))
    boosted = rounds.stack(attacks.attacked(members(4), "config-pattern", 1))
    first, second = sorted(plain)
    assert torch.allclose(boosted[first][-1], 100 * plain[first][-1], rtol=1e-5)
    assert torch.allclose(boosted[first][:-1], plain[first][:-1])
    assert torch.allclose(boosted[second], plain[second])


@pytest.mark.parametrize(
    ("outcome", "error", "best", "clear", "lost", "beaten"),
    [
        ("judged", 0.01, 0.0, True, False, False),
        ("judged", 0.04, 0.0, True, True, True),
        ("judged", 0.06, 0.06, True, True, False),
        ("judged", 0.06, 0.0, False, False, True),
        ("undetermined", 0.0, 0.0, True, True, True),
        ("judged", math.nan, 0.0, True, True, True),
    ],
)
def test_lost_and_beaten_cells(
    outcome: str, error: float, best: float, clear: bool, lost: bool, beaten: bool
) -> None:
    peers = {"mean": 2 * error, "other": best}
    found = rounds.Round(None, outcome, 8, 4, 4, 0, 0, 0, clear, error, peers)  # type: ignore[arg-type]
    cell = attack_matrix.Cell("flip-own", "pool", 12, 0.4, "homogeneous", found)
    assert (cell.lost, cell.beaten) == (lost, beaten)
    if error > 0:
        assert cell.units == 0.5
