"""What pictures are drawn from: the line that a client must fall short of, and the map."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import cohorts
from tests.cohorts import clair


def test_the_line_parts_the_unlike_from_the_others_and_the_map_shows_it(tmp_path: Path) -> None:
    honest = cohorts.honest(9)
    clients = {**honest, "zz-unrelated": cohorts.unrelated()}
    folder = cohorts.save(tmp_path / "clients", clients, "mixed")
    report = cohorts.check_report(clair("inspect", folder, "--json").stdout)
    cohort = report["cohort"]
    assert cohort["line"] == 0.45
    assert 2.3 < cohort["line_width"] < 3.0  # Student's t at 0.01
    for client in report["clients"]:
        scores = client["scores"]
        upper = scores["loading"] + cohort["line_width"] * scores["loading_se"]
        assert (upper < cohort["line"]) == (client["verdict"] == "contaminated"), client["name"]
    first, second, *_ = cohort["spectrum"]
    assert first > 2.0 > second  # one thing is shared
    assert sum(cohort["spectrum"]) == pytest.approx(10, abs=1e-4)
    place = dict(zip(cohort["names"], cohort["coordinates"], strict=True))
    x, y = place["zz-unrelated"]
    assert (x * x + y * y) ** 0.5 < 0.2
    assert all(0.4 < place[name][0] < 0.8 for name in honest)
    for j, row in zip(cohort["names"], cohort["similarity"], strict=True):
        for k, similarity in zip(cohort["names"], row, strict=True):
            if j != k:
                product = place[j][0] * place[k][0] + place[j][1] * place[k][1]
                assert product == pytest.approx(similarity, abs=0.15)


def test_a_round_that_is_not_compared_has_neither(tmp_path: Path) -> None:
    folder = cohorts.save(
        tmp_path / "clients", {"a": cohorts.with_nan(cohorts.unrelated())}, "mixed"
    )
    cohort = cohorts.check_report(clair("inspect", folder, "--json").stdout)["cohort"]
    assert (cohort["line"], cohort["line_width"]) == (None, None)
    assert (cohort["coordinates"], cohort["spectrum"]) == ([], [])
