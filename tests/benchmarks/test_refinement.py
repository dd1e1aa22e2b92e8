"""theory/refinement.py: small rounds on either side of the crossing, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import clair_cli
from benchmarks.theory import planted_rounds as planted
from benchmarks.theory import refinement
from benchmarks.theory.planted_rounds import planted_round
from benchmarks.theory.refinement import Case

BOTH = Case("noise", "both", 5, 0.5, 2)


def test_the_choice_is_the_better_side_of_the_crossing() -> None:
    near, far = refinement.measure(BOTH, 0.25), refinement.measure(BOTH, 2.0)
    assert (near.odd, near.odd_out, near.gone, near.undetermined) == (1, 1, 0, 0)
    assert len(near.kept) == len(far.kept) == 10
    assert near.error("formula") < 0.5 and near.error("choice") == near.error("formula")
    assert far.error("formula") > 1.5 and far.worst <= 1.0001
    assert all(near.better) and all(far.better) and all(far.kept) and not any(near.kept)
    for row in (near, far):
        assert row.error("part") < min(1.0, row.error("formula"))
        assert row.error("mean") == pytest.approx(row.error("merged"), rel=1e-6)
    found = refinement.measured_crossing([near, far])
    assert found == pytest.approx(planted.predicted_crossing("both", 5), abs=0.05)


@pytest.mark.parametrize("kind", ["counts", "uneven"])
def test_unequal_clients_are_chosen_for_one_by_one(kind: str) -> None:
    apart = {"counts": 1.25, "uneven": 0.4}[kind]
    row = refinement.measure(Case(kind, "both", 10, 0.25, 1), apart)
    assert any(row.kept) and not all(row.kept)
    assert row.worst <= 1.01 < max(row.errors["formula"])
    assert row.error("choice") < 0.9


def test_both_ways_are_what_the_command_gives() -> None:
    round_ = planted_round(5, side="both", heterogeneity=[0.0, 0.0, 0.0, 0.0, 6.0], seed=3)
    found = refinement.refined_both_ways(round_, "noise")
    assert found is not None
    for noise, ours in ((round_.sigma, found[1]), (None, found[2])):
        result = clair_cli.refine(round_.adapters(), noise=noise, rank="full", dtype="float32")
        assert result.report.refined is not None
        kept = {c.name: c.kept_local for c in result.report.refined.clients}
        assert kept == {c.name: c.kept_local for c in ours.clients}
        assert kept["client-04"] == (noise is not None) and not kept["client-00"]
        for one in ours.clients:
            state = result.adapters[one.name][0]
            assert all(torch.equal(state[key], one.adapter.tensors[key]) for key in state)


@pytest.mark.parametrize("side", planted.SIDES)
def test_a_planted_round_is_truth_plus_noise(side: str) -> None:
    counts = [100.0, 200.0, 400.0, 800.0]
    round_ = planted_round(4, side=side, heterogeneity=2.0, counts=counts, bad=1, seed=1)
    assert list(round_.truth) == ["client-00", "client-01", "client-02"]
    assert list(round_.local)[3] == "odd-03"
    for name, truth in round_.truth.items():
        error = planted.squared_error(round_.local[name], truth)
        assert error == pytest.approx(round_.sigmas[name] ** 2, rel=0.1)
        state, config = round_.adapters()[name]
        again = planted.dense(state, config["lora_alpha"] / config["r"])
        assert planted.squared_error(again, round_.local[name]) == 0.0
    assert round_.sigmas["client-00"] == pytest.approx(2.0 * round_.sigmas["client-02"])
    off = sum(planted.n_outside(side, shape) for shape in planted.MODULES.values())
    apart = planted_round(2, side=side, heterogeneity=[8.0, 0.0], seed=2)
    plain = planted_round(2, side=side, heterogeneity=0.0, seed=2)
    moved = planted.ENTRIES * planted.squared_error(
        apart.truth["client-00"], plain.truth["client-00"]
    )
    assert moved == pytest.approx(8.0 * apart.sigma**2 * off, rel=0.1)


def test_the_table_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(refinement, "QUICK", (Case("noise", "both", 4, 0.5, 1),))
    monkeypatch.setattr(refinement, "QUICK_APART", (0.0, 2.0))
    written = []
    for name in ("a.json", "b.json"):
        refinement.main(["--quick", "--json", str(tmp_path / name)])
        written.append((tmp_path / name).read_text(encoding="utf-8"))
    assert written[0] == written[1]
    numbers = json.loads(written[0])
    assert [row["apart"] for row in numbers["rows"]] == [0.0, 2.0]
    assert numbers["crossings"][0]["predicted"] == pytest.approx(
        planted.predicted_crossing("both", 4)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == refinement.HEADER and len(lines) == 2 * 5
    assert lines[4].startswith("noise: worst choice/local 1.0000 over 8 clients")
