"""The plan of a round on a cluster (never its seconds)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale import judging
from benchmarks.scale import plan as planning
from benchmarks.scale.plan import RANKS, SHAPES, a_round, left_between, plan
from benchmarks.speed.cohorts import make_cohort
from clair_cli.cohort.round import load_round
from clair_cli.settings import make_settings
from clair_cli.workflow import batches
from clair_cli.workflow.read import read_cohort

STORES = 10**9


def test_a_planned_round_is_one_of_such_files(tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohort", "small", 4, "4")
    settings = make_settings("merge", tmp_path / "cohort", None, {})
    real, planned = load_round(settings, read_cohort(settings)), a_round("small", 4, 4)
    assert planned.module_shapes == real.module_shapes
    assert planned.module_ranks == real.module_ranks
    sizes = {e.name: e.end - e.begin for e in real.adapters[0].source.tensors.values()}
    entries = planned.adapters[0].source.tensors.values()
    assert {e.name: e.end - e.begin for e in entries} == sizes
    assert plan("small", 4, 4, STORES).stored == 4 * sum(sizes.values())


def test_seventy_billion() -> None:
    """80 layers of seven; at rank 64 a client is 1.66 GB."""
    widths = [out + in_ for _, out, in_ in SHAPES["70b"].modules()]
    assert len(widths) == 560
    assert 2 * RANKS["70b"] * sum(widths) == 1_656_750_080


def test_bytes_and_products_grow_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grams with the square of the clients; without kept Grams products are made twice, and without
    room for what is cut everything is read once more."""
    four, eight = plan("small", 4, 4, STORES), plan("small", 8, 4, STORES)
    assert eight.stored == 2 * four.stored
    assert four.read == 3 * four.stored
    assert 2.0 < eight.products / four.products < 8.0
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", 0)
    again = plan("small", 4, 4, STORES)
    assert again.read == four.read and again.products > four.products
    monkeypatch.setattr(planning, "KEPT_BETWEEN_PASSES", 0)
    third = plan("small", 4, 4, 0)
    assert (third.read, third.store) == (4 * four.stored, 0)


def test_what_one_look_leaves_for_the_next_fits_its_room() -> None:
    """Of 40 components in a layer of 100 and 60: cut to ranks 8, 16, 32 and 40, two bytes each."""
    each = 2 * (100 + 60)
    for room, ranks in ((96 * each, [8, 16, 32, 40]), (96 * each - 1, [8, 16, 32]), (0, [])):
        assert left_between(40, (100, 60), room, 0) == (each * sum(ranks), ranks)
    assert left_between(40, (100, 60), 16 * 40 * 40, 1) == (16 * 40 * 40, [])
    assert left_between(400, (1000, 600), 16 * 400 * 128, 1) == (16 * 400 * 128, [])
    assert left_between(400, (1000, 600), 16 * 400 * 128 - 1, 1) == (0, [])


def test_overcomplete_stacks_are_read_as_often() -> None:
    """280 components are more than the 256 rows or columns of all layers but the narrow ones of
    128, which never count."""
    assert plan("small", 70, 4, STORES).read == 3 * plan("small", 70, 4, STORES).stored


def test_the_judge_is_fitted_by_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "measured", lambda k, m: 0.2 + 1e-7 * k**2 * m + 3e-8 * k**3)
    judging.fit.cache_clear()
    assert judging.judging_seconds(1000, 560) == pytest.approx(0.2 + 56.0 + 30.0)
    judging.fit.cache_clear()


def test_the_judge_judges_what_is_measured() -> None:
    assert judging.measured(6, 4) > 0.0
