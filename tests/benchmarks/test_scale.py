"""The plan of a round on a cluster (never its seconds)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale import judging
from benchmarks.scale.plan import RANKS, SHAPES, a_round, plan
from benchmarks.speed.cohorts import make_cohort
from clair_cli.cohort.round import load_round
from clair_cli.settings import make_settings
from clair_cli.workflow import batches
from clair_cli.workflow.read import read_cohort


def test_a_planned_round_is_one_of_such_files(tmp_path: Path) -> None:
    make_cohort(tmp_path / "cohort", "small", 4, "4")
    settings = make_settings("merge", tmp_path / "cohort", None, {})
    real, planned = load_round(settings, read_cohort(settings)), a_round("small", 4, 4)
    assert planned.module_shapes == real.module_shapes
    assert planned.module_ranks == real.module_ranks
    sizes = {e.name: e.end - e.begin for e in real.adapters[0].source.tensors.values()}
    entries = planned.adapters[0].source.tensors.values()
    assert {e.name: e.end - e.begin for e in entries} == sizes
    assert plan("small", 4, 4).stored == 4 * sum(sizes.values())


def test_seventy_billion() -> None:
    """80 layers of seven; at rank 64 a client is 1.66 GB."""
    widths = [out + in_ for _, out, in_ in SHAPES["70b"].modules()]
    assert len(widths) == 560
    assert 2 * RANKS["70b"] * sum(widths) == 1_656_750_080


def test_bytes_and_products_grow_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grams with the square of the clients; without kept Grams everything is read once more."""
    four, eight = plan("small", 4, 4), plan("small", 8, 4)
    assert eight.stored == 2 * four.stored
    assert four.read == 3 * four.stored
    assert 2.0 < eight.products / four.products < 8.0
    monkeypatch.setattr(batches, "KEPT_BETWEEN_PASSES", 0)
    again = plan("small", 4, 4)
    assert again.read == 4 * four.stored
    assert replace(again, read=0, products=0.0, driver=0) == replace(
        four, read=0, products=0.0, driver=0
    )


def test_overcomplete_stacks_are_read_once_more() -> None:
    """280 components are more than the 256 rows or columns of all layers but the narrow ones of
    128, which never count."""
    widths = [(out + in_, min(out, in_)) for _, out, in_ in SHAPES["small"].modules()]
    passes = sum(both * (4 if least == 256 else 3) for both, least in widths)
    assert plan("small", 70, 4).read == 2 * 280 * passes
    assert plan("small", 64, 4).read == 3 * plan("small", 64, 4).stored


def test_the_judge_is_fitted_by_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "measured", lambda k, m: 0.2 + 1e-7 * k**2 * m + 3e-8 * k**3)
    judging.fit.cache_clear()
    assert judging.judging_seconds(1000, 560) == pytest.approx(0.2 + 56.0 + 30.0)
    judging.fit.cache_clear()


def test_the_judge_judges_what_is_measured() -> None:
    assert judging.measured(6, 4) > 0.0
