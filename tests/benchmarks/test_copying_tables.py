"""The tables of the copying rounds: intervals, sums over seeds, layout."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.copying import tables


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 20), (3, 20), (10, 20), (99, 100), (5, 5)])
def test_wilsons_bounds_solve_their_equation(hits: int, total: int) -> None:
    """The shares from which the one seen is 1.96 standard deviations away."""
    seen, (low, high) = hits / total, tables.wilson(hits, total)
    assert low <= seen <= high
    for bound in (low, high):
        variance = bound * (1 - bound) / total
        assert (seen - bound) ** 2 == pytest.approx(1.959963984540054**2 * variance, abs=1e-12)
    assert high > low


def test_mean_interval_by_hand() -> None:
    mean, half = tables.mean_interval([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert half == pytest.approx(1.96 * (14 / 3) ** 0.5 / 2)
    assert tables.mean_interval([4.0]) == (4.0, 0.0)


def test_summary_adds_up_over_seeds(cells: list[dict[str, Any]]) -> None:
    rows = tables.summary(cells)
    assert len(rows) == 8
    row = next(r for r in rows if (r["init"], r["kind"], r["share"]) == ("own", "backdoor", 0.6))
    some = [c for c in cells if (c["init"], c["kind"], c["share"]) == ("own", "backdoor", 0.6)]
    a, b = (c["scores"]["mean"]["new_loss"] for c in some)
    assert row["columns"]["mean"]["new_loss"] == pytest.approx(
        ((a + b) / 2, 1.96 * abs(a - b) / 2), rel=1e-12
    )
    assert (row["verdicts"]["hits"], row["verdicts"]["bad"], row["rounds"]) == (12, 24, 2)
    assert row["intervals"]["hits"] == tables.wilson(12, 24)
    assert row["intervals"]["false_flags"] == tables.wilson(1, 16)
    assert row["intervals"]["undetermined"] == tables.wilson(1, 2)


def test_tables_fit_and_show_every_row(cells: list[dict[str, Any]]) -> None:
    rows = tables.summary(cells)
    for measure in tables.MEASURES:
        lines = list(tables.measure_table(rows, measure))
        assert len(lines) == len(rows) + 3
        assert len({len(text) for text in lines[1:-1]}) == 1
        assert len(lines[1]) <= 160
    assert len(list(tables.verdict_table(rows))) == len(rows) + 2
