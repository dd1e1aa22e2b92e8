"""What pictures show: orders, numbers, and what is left out where it is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clair_cli.pictures.errors import losses
from clair_cli.pictures.grids import share_grid, similarity_grid, size_grid
from clair_cli.pictures.order import by_group, by_verdict
from clair_cli.pictures.points import evidence, places
from clair_cli.pictures.spectrum import spectrum
from clair_cli.report.model import ModuleScores, Report
from tests.fake_report import BENIGN, MODULES, fake_report, undetermined


def with_module(report: Report, client: str, module: str, scores: ModuleScores) -> Report:
    """The report with one client's scores in one module changed."""
    clients = tuple(
        replace(c, modules={**c.modules, module: scores}) if c.name == client else c
        for c in report.clients
    )
    return replace(report, clients=clients)


def test_clients_stand_in_the_order_of_groups() -> None:
    names = [client.name for client in by_group(fake_report())]
    assert names[:6] == list(BENIGN)
    assert names[6:] == ["mallory", "zoe", "amber", "dave-copy", "oscar"]
    verdicts = [client.verdict for client in by_verdict(fake_report().clients)]
    assert verdicts[:4] == ["contaminated"] * 3 + ["suspicious"]


def test_similarities_are_the_reports() -> None:
    report = fake_report()
    rows = [list(row) for row in report.cohort.similarity]
    place = {name: i for i, name in enumerate(report.cohort.names)}
    rows[place["zoe"]][place["bob"]] = -0.125
    cohort = replace(report.cohort, similarity=tuple(map(tuple, rows)))
    grid = similarity_grid(replace(report, cohort=cohort))
    assert grid is not None
    assert grid.values[grid.rows.index("zoe")][grid.columns.index("bob")] == -0.125
    assert grid.values[0][0] is None  # a client and itself
    assert grid.ends == (6, 8)
    assert similarity_grid(replace(report, cohort=replace(cohort, similarity=()))) is None


@pytest.mark.parametrize(
    ("similarity", "chance", "share"),
    [
        (0.3, 0.04, 1.0),
        (0.0, 0.04, 0.0),
        (-0.15, 0.04, -0.5),
        (0.3, 0.149, 1.0),
        (0.3, 0.151, None),
        (None, 0.04, None),
    ],
)
def test_a_share_is_told_where_members_stand_out_of_chance(
    similarity: float | None, chance: float, share: float | None
) -> None:
    scores = ModuleScores(1.7, similarity, chance, 8, 2.0)
    grid = share_grid(with_module(fake_report(), "zoe", MODULES[1], scores))
    assert grid is not None
    assert grid.columns == MODULES
    assert grid.values[grid.rows.index("zoe")][1] == share
    assert grid.values[0] == (1.0, 1.0)


def test_no_share_is_told_without_a_group() -> None:
    assert share_grid(undetermined()) is None


@pytest.mark.parametrize(("norm", "power"), [(3.4, 1.0), (0.85, -1.0), (1.7, 0.0), (0.0, None)])
def test_sizes_are_powers_of_two(norm: float, power: float | None) -> None:
    scores = ModuleScores(norm, 0.3, 0.04, 8, 2.0)
    grid = size_grid(with_module(fake_report(), "zoe", MODULES[0], scores))
    assert grid is not None
    assert grid.values[grid.rows.index("zoe")][0] == pytest.approx(power)


def test_the_interval_is_the_one_that_decides() -> None:
    found = evidence(fake_report())
    assert found is not None
    assert (found.line, found.width) == (0.45, 2.4)
    amber = next(mark for mark in found.marks if mark.name == "amber")
    assert (amber.low, amber.high) == (pytest.approx(0.03 - 0.12), pytest.approx(0.03 + 0.12))
    assert "rita" not in {mark.name for mark in found.marks}  # nothing of it was compared


def test_the_map_has_the_reports_places() -> None:
    report = fake_report()
    assert {(p.name, (p.x, p.y)) for p in places(report)} == set(
        zip(report.cohort.names, report.cohort.coordinates, strict=True)
    )
    assert places(replace(report, cohort=replace(report.cohort, coordinates=()))) == ()


def test_losses_are_sorted_by_rank() -> None:
    found = losses(fake_report())
    assert found is not None
    assert found.ranks == (8, 16, 72)
    assert found.total == (0.2, 0.07, 0.0)
    assert found.modules == dict.fromkeys(MODULES, (0.2, 0.07, 0.0))
    assert losses(fake_report(command="inspect")) is None


def test_the_spectrum_stands_beside_chance() -> None:
    report = fake_report()
    found = spectrum(report)
    assert found is not None
    assert found.values == report.cohort.spectrum
    assert found.chance == pytest.approx(1 + 2 * 0.02 * 11**0.5)
    many = replace(report.cohort, spectrum=(2.0,) * 41, similarity_se=())
    found = spectrum(replace(report, cohort=many))
    assert found is not None
    assert (len(found.values), found.count, found.chance) == (40, 41, None)
    assert spectrum(replace(report, cohort=replace(many, spectrum=()))) is None
