"""Cohorts drawn from pools, judged against the truth, and counted in tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.pools import cohorts, run, score, store, table
from benchmarks.pools.cohorts import Cohort, cohorts_of
from benchmarks.pools.score import Result
from benchmarks.pools.settings import Client, Setting, clients_of
from benchmarks.pools.store import Trained
from benchmarks.pretrained.clients import SETTINGS

DRAWN = list(cohorts_of(SETTINGS, 0))
MODULES = [f"base_model.model.layer.{index}.query" for index in range(4)]
TINY = Setting("base", {"all": 6}, {"label": 3}, rank=2)


def names(cohort: Cohort) -> list[str]:
    return [f"{one.setting.name}/{one.name}" for one in cohort.members]


def share_bad(cohort: Cohort) -> float:
    return sum(cohort.bad) / len(cohort.bad)


def test_draws_depend_on_the_seed_alone() -> None:
    assert [names(one) for one in DRAWN] == [names(one) for one in cohorts_of(SETTINGS, 0)]
    assert [names(one) for one in DRAWN] != [names(one) for one in cohorts_of(SETTINGS, 1)]


def test_draws_do_not_repeat_a_client() -> None:
    for cohort in DRAWN:
        assert len(set(names(cohort))) == len(cohort.members)


def test_every_row_has_cohorts_of_its_definition() -> None:
    rows = {name: [one for one in DRAWN if one.row == name] for name in cohorts.ROWS}
    assert all(rows.values())
    for name in ("clean", "populations", "recipes"):
        assert all(share_bad(one) == 0 for one in rows[name])
    assert all(sum(one.bad) >= 2 and share_bad(one) <= 0.4 for one in rows["several"])
    assert {one.kinds for one in rows["single"]} == set(cohorts.KINDS)
    assert all(sum(one.bad) == 1 for one in rows["single"])
    assert all(share_bad(one) == 0.6 for one in rows["majority-60"])
    for cohort in rows["majority-80"]:
        assert share_bad(cohort) == 0.8 and len(cohort.bad) - sum(cohort.bad) == 3
    assert all(share_bad(one) == 1 for one in rows["all-bad"])
    assert all(one.bad == 8 * (False,) + 2 * (True,) for one in rows["formulas"])


def test_clean_cohorts_have_one_recipe_and_mixed_ones_several() -> None:
    for cohort in DRAWN:
        recipes = {(one.setting.rate, one.setting.steps) for one in cohort.members}
        assert len(recipes) == (5 if cohort.row == "recipes" else 1)


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """A client whose delta weights are a common part and a little noise, or noise if it is bad."""
    state = {}
    for module in MODULES:
        common, own = store.seeded("common", module), store.seeded(seed, client.name, module)
        for side, shape in (("A", (2, 24)), ("B", (24, 2))):
            noise = torch.randn(shape, generator=own)
            same = torch.randn(shape, generator=common)
            state[f"{module}.lora_{side}.weight"] = noise if client.bad else same + 0.1 * noise
    return (state, {"peft_type": "LORA", "r": 2, "lora_alpha": 4}), {"loss": 1.0}


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAIR_BENCH_CACHE", str(tmp_path))
    run.train_pools(["--seed", "0"], "stub", {"base": TINY}, train)
    return store.pool_path("stub", 0, "base")


def cohort_of(bad: int, attack: str = "", attackers: int = 0) -> Cohort:
    honest, wrong = clients_of(TINY)[:6], clients_of(TINY)[6:]
    return Cohort("several", 0, TINY, (*honest, *wrong[:bad]), "label", attack, attackers)


def test_unlike_clients_are_counted_as_bad_and_left_out(pool: Path) -> None:
    result = score.score(cohort_of(2), "stub")
    assert result.outcome == "judged" and not result.silent
    assert result.bad == {"contaminated": 2} and result.honest == {"benign": 6}
    assert result.hits == 2
    assert result.errors["clair"] < 1e-5


def test_errors_are_relative_to_the_mean_of_the_benign(pool: Path) -> None:
    cohort = cohort_of(2)
    result = score.score(cohort, "stub")
    each = [store.dense(*store.load_adapter(pool / one.name)) for one in cohort.members]
    points = torch.stack([torch.cat([one[n].flatten() for n in MODULES]) for one in each])
    benign = points[:6].mean(0)
    expected = (points.mean(0) - benign).norm() / benign.norm()
    assert result.errors["mean"] == pytest.approx(float(expected), rel=1e-6)
    assert result.errors["multi-krum"] == pytest.approx(0, abs=1e-9)


def test_formulas_replace_the_last_members(pool: Path) -> None:
    cohort = cohort_of(0, "flip-own", 2)
    adapters, _ = score.load(cohort, "stub")
    deltas = [store.dense(*one)[MODULES[0]] for one in adapters.values()]
    for index, client in enumerate(cohort.members):
        own = store.dense(*store.load_adapter(pool / client.name))[MODULES[0]]
        assert torch.allclose(deltas[index], -own if index >= 4 else own, atol=1e-5)


def test_task_sees_the_whole_delta_weights(pool: Path) -> None:
    seen = []

    def task(deltas: score.Deltas, seed: int) -> dict[str, float]:
        seen.append(deltas)
        return {"loss": 1.0, "backdoor": 0.5}

    result = score.score(cohort_of(2), "stub", task)
    assert set(result.task) == {"benign", "mean", "clair"}
    benign, mean, clair = (deltas[MODULES[0]] for deltas in seen)
    assert benign.shape == (24, 24)
    assert torch.allclose(benign, clair, atol=1e-5)
    assert not torch.allclose(benign, mean, atol=1e-2)


def test_cohorts_with_missing_clients_are_not_trained(pool: Path) -> None:
    assert score.is_trained(cohort_of(3), "stub")
    (pool / "label-02" / store.ABOUT).unlink()
    assert score.is_trained(cohort_of(2), "stub")
    assert not score.is_trained(cohort_of(3), "stub")


def result(
    bad: dict[str, int], honest: dict[str, int], error: float | None, outcome: str = "judged"
) -> Result:
    errors = {"mean": 0.5} if error is None else {"mean": 0.5, "clair": error}
    code = {"judged": 0, "undetermined": 5}[outcome]
    return Result("several", 0, "base", "label", bad, honest, outcome, code, errors)


@pytest.mark.parametrize(
    ("error", "outcome", "silent"),
    [
        (0.19, "judged", False), (0.21, "judged", True), (None, "undetermined", False),
        (0.21, "undetermined", False),
    ],
)  # fmt: skip
def test_silent_is_judged_and_far_off(error: float | None, outcome: str, silent: bool) -> None:
    assert result({"benign": 1}, {"benign": 3}, error, outcome).silent == silent


def test_lines_add_up_verdicts() -> None:
    some = [
        result({"contaminated": 1, "minority": 2}, {"benign": 5, "contaminated": 1}, 0.3),
        result(
            {"benign": 1, "duplicate": 1}, {"minority": 2, "suspicious": 3}, None, "undetermined"
        ),
    ]
    words = table.line("label", some).split()
    #  cohorts undetermined silent | hit min susp out bad | false min susp honest
    assert words[1:4] == ["2", "1", "1"]
    assert words[4:9] == ["1", "2", "0", "1", "5"]
    assert words[9:13] == ["1", "2", "3", "11"]
    assert words[13:] == ["0.30", "0.30", "0.50", "0.50", "-", "-"]
    assert len(table.HEADER) == len(table.line("label", some))


def test_held_back_seeds_have_tables_of_their_own() -> None:
    lines = list(table.tables([result({"benign": 1}, {"benign": 3}, 0.0)], with_task=False))
    assert lines[0] == "tuning: seed 0"
    assert not any(text.startswith("held back") for text in lines)


def test_second_rounds_are_measured_from_the_previous_adapter(pool: Path) -> None:
    second = replace(TINY, name="second", second=True)
    run.train_pools(["--seed", "0"], "stub", {"base": TINY, "second": second}, train)
    clients = clients_of(second)
    cohort = Cohort("several", 0, second, (*clients[:6], *clients[6:8]), "label")
    result = score.score(cohort, "stub", lambda deltas, seed: {"size": size_of(deltas)})
    folder = pool.with_name("second")
    paths = [folder / "previous", *(folder / one.name for one in cohort.members)]
    each = [store.dense(*store.load_adapter(path)) for path in paths]
    points = torch.stack([torch.cat([one[n].flatten() for n in MODULES]) for one in each])
    benign = points[1:7].mean(0)
    expected = (points[1:].mean(0) - benign).norm() / (benign - points[0]).norm()
    assert result.errors["mean"] == pytest.approx(float(expected), rel=1e-6)
    assert result.task["benign"]["size"] == pytest.approx(float(benign.norm()), rel=1e-6)


def size_of(deltas: score.Deltas) -> float:
    return float(torch.cat([delta.flatten() for delta in deltas.values()]).norm())
