"""Cohorts of simulated layers: pairs, errors and counts against dense oracles, and the table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.width import cohorts, simulate, table
from benchmarks.width.cohorts import Found, Pool
from benchmarks.width.pairs import pairs, split
from benchmarks.width.simulate import Setting

pytestmark = pytest.mark.usefixtures("one_thread")

SETTING = Setting(16, 3, 1.0, "own", 2e-3, 6, 2)


def trained(setting: Setting) -> Pool:
    layers = [simulate.train_module(setting, index) for index in range(setting.modules)]
    return Pool(setting, layers)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return trained(SETTING)


def deltas(pool: Pool) -> Tensor:
    """Delta weights, (modules, clients, width, width)."""
    return torch.stack([2 * B.double() @ A.double() for A, B in pool.layers])


def test_pairs_are_those_of_dense_matrices(pool: Pool) -> None:
    D = deltas(pool)[0] / 2
    found = pairs(*pool.layers[0])
    unit = D / D.flatten(1).norm(dim=1)[:, None, None]
    cosine = unit.flatten(1) @ unit.flatten(1).T
    sides = [(X @ X.mT).flatten(1) for X in (unit, unit.mT)]
    output, input_ = (X @ X.T for X in sides)
    torch.testing.assert_close(found.inner, D.flatten(1) @ D.flatten(1).T)
    torch.testing.assert_close(found.cosine, cosine)
    torch.testing.assert_close(found.z, cosine / (output * input_).sqrt())
    sizes = output.diagonal().sqrt()
    torch.testing.assert_close(found.output, output / sizes / sizes[:, None])


def test_z_of_unrelated_clients_has_mean_0_and_deviation_1() -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(60, 4, 64, generator=generator), torch.randn(60, 64, 4, generator=generator)
    z = pairs(A, B).z[torch.ones(60, 60).triu(1).bool()]
    assert abs(float(z.mean())) < 0.1
    assert float(z.std()) == pytest.approx(1, abs=0.1)


def test_split_tells_honest_pairs_from_mixed_ones() -> None:
    mixed = torch.tensor([[9.0, 1, 5], [1, 9, 7], [5, 7, 9]])
    assert split(mixed, ["honest", "honest", "lone"]) == (1, 6)


def test_errors_are_those_of_dense_matrices(pool: Pool) -> None:
    points = deltas(pool).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(pool.gram, points @ points.T)
    honest, bad = [0, 1, 3, 4], [6, 9]
    target = points[honest].mean(0)
    state, _ = pool.client(9)
    merged = {name: 2 * x if "lora_B" in name else x for name, x in state.items()}
    wanted = peers.error(points[9], target)
    assert cohorts.merge_error(pool, honest, merged) == pytest.approx(wanted, rel=1e-5)
    found = cohorts.peer_errors(pool.gram, honest, bad)
    rows = points[honest + bad]
    for name, rule in cohorts.RULES.items():
        assert found[name] == pytest.approx(peers.error(rule(rows, 2), target), rel=1e-5)


@pytest.mark.parametrize(("modules", "judged"), [(3, False), (24, True)])
def test_the_merge_of_a_clean_cohort_is_its_mean(modules: int, judged: bool) -> None:
    """Where there are modules enough to notice a client that shares nothing."""
    found = cohorts.judge(trained(replace(SETTING, modules=modules)), range(6))
    assert found.judged == found.exact == judged and not found.silent
    assert found.error == (pytest.approx(0, abs=1e-4) if judged else None)


def test_cases_fit_the_pool() -> None:
    made = list(cohorts.cases(Setting(16, 3, 1.0, "own", 2e-3), [8, 32]))
    assert ("clean", {"honest": 24}) in made and ("all noise", {"noise": 13}) in made
    assert ("lone", {"honest": 24, "lone": 8}) in made
    assert ("mixed", {"honest": 19, "lone": 4, "noise": 4, "other": 5}) in made
    assert len(made) == 2 * (1 + 4 * 2 + 2)
    few = list(cohorts.cases(Setting(16, 3, 1.0, "own", 2e-3, 16, 4), [16]))
    assert [case for case, _ in few] == [
        "clean", "lone", "noise", "other", "mixed", "mixed", "all lone", "all noise",
    ]  # fmt: skip


def test_draws_differ_and_are_of_the_kinds_asked_for() -> None:
    counts = {"honest": 4, "other": 1}
    first, second = (cohorts.draw(SETTING, counts, number) for number in (0, 1))
    assert first == cohorts.draw(SETTING, counts) and first != second
    assert [SETTING.kinds[i] for i in first] == ["honest"] * 4 + ["other"]


@pytest.mark.parametrize(
    ("judged", "honest", "bad", "error", "exact", "silent"),
    [
        (True, ["benign"], ["contaminated"], 0.0, True, False),
        (True, ["benign"], ["minority"], 0.2, True, False),
        (True, ["benign"], ["suspicious"], 0.21, False, True),
        (True, ["benign", "minority"], ["contaminated"], 0.1, False, False),
        (False, ["undetermined"], ["undetermined"], None, False, False),
        (False, [], ["undetermined"], None, True, False),
        (True, [], ["benign"], None, False, False),
    ],
)
def test_what_is_exact_and_what_is_silent(
    judged: bool, honest: list[str], bad: list[str], error: float, exact: bool, silent: bool
) -> None:
    found = Found(judged, honest, bad, error, {})
    assert (found.exact, found.silent) == (exact, silent)


def test_a_row_counts() -> None:
    rules = dict.fromkeys(cohorts.RULES, 0.5)
    made = [
        Found(True, ["benign", "suspicious"], ["minority", "benign"], 0.4, rules),
        Found(False, ["contaminated"], ["contaminated"], None, rules),
        Found(True, ["minority"], [], 0.0, rules),
    ]
    line = table.row("one", made)
    assert line.split()[:7] == ["one", "3", "0", "1", "1", "3", "1"]
    assert line.split()[7:] == ["1", "1", "4", "1", "1", "0.20", "0.50", "0.50", "0.50"]
    assert len(line) == len(table.HEADER)


def test_what_is_to_be_reached_and_what_is() -> None:
    """One cohort is silent, and one of bad clients alone is judged."""
    exact = Found(True, ["benign"], [], 0.0, {})
    not_judged = Found(False, ["undetermined"], [], None, {})
    silent = Found(True, ["benign"], ["benign"], 0.3, {})
    bad = [Found(judged, [], ["benign"], None, {}) for judged in (True, False)]
    many = [(112, 0.25, exact)] * 9 + [(112, 0.25, not_judged)]
    few = [(28, 0.9, silent), (112, 0.24, not_judged), *((112, 0.9, one) for one in bad)]
    assert [line.split()[-6:] for line in table.target_lines([*many, *few])] == [
        ["1", "of", "12", "8.3", "%", "no"],
        ["%", "9", "of", "10", "90.0", "%"],
        ["1", "of", "2", "50.0", "%", "no"],
    ]
    worse = [*many, (112, 0.25, not_judged)]
    assert [line.split()[-1] for line in table.target_lines(worse)] == ["%", "no"]
    assert table.target_lines([]) == []


def test_the_program_prints_what_pools_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--widths", "16", "--modules", "3", "--powers", "1", "--inits", "own"]
    chosen += ["--rates", "2e-3", "2e-4", "--counts", "6", "2"]
    simulate.make_pool(SETTING, tmp_path)
    told = ["table", *chosen, "--cache", str(tmp_path), "--sizes", "4", "--json"]
    monkeypatch.setattr(sys, "argv", [*told, str(tmp_path / "found.json")])
    table.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == table.HEADER and table.PAIR_HEADER in lines
    assert sum(line.startswith(SETTING.name) for line in lines) == 2
    assert any(line.startswith("all pools, other") for line in lines)
    assert [line[:14] for line in lines if ">=" in line or "<=" in line] == [
        "silent cohorts", "every client b",
    ]  # fmt: skip
    made = json.loads((tmp_path / "found.json").read_text())
    assert list(made["pairs"]) == [SETTING.name] and len(made["cohorts"]) == 11
