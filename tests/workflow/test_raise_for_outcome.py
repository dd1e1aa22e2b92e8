"""`raise_for_outcome` and `Report.to_dict`, for programs that call the functions."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.report.encode import report_json
from tests import cohorts
from tests.workflow.test_exits import CLEAN, MIXED

TWO = cohorts.honest(2)
NOBODY = {"a": cohorts.with_nan(cohorts.unrelated()), "b": cohorts.with_nan(cohorts.unrelated())}


@pytest.mark.parametrize("name", ["merge", "inspect", "refine"])
@pytest.mark.parametrize(
    ("clients", "code", "words"),
    [(CLEAN, 0, ""), (MIXED, 3, "1 of 5 clients contaminated"), (NOBODY, 4, "refused: "),
     (TWO, 5, "undetermined: ")],
)  # fmt: skip
def test_a_round_that_went_wrong_is_raised(
    name: str, clients: Any, code: int, words: str, tmp_path: Path
) -> None:
    cohorts.save(tmp_path / "clients", clients)
    function: Any = getattr(clair_cli, name)
    result = function(tmp_path / "clients", fail_on="contaminated")
    assert result.report.exit_code == code
    if code == 0:
        assert result.raise_for_outcome() is result
        return
    with pytest.raises(clair_cli.RoundStopped, match=words) as caught:
        result.raise_for_outcome()
    assert isinstance(caught.value, clair_cli.ClairError)
    assert caught.value.exit_code == code and caught.value.report is result.report
    assert caught.value.hint


def test_a_verdict_that_is_allowed_to_miss_is_not_raised(tmp_path: Path) -> None:
    cohorts.save(tmp_path / "clients", TWO)
    clair_cli.merge(tmp_path / "clients", allow_undetermined=True).raise_for_outcome()


def test_a_report_as_a_dict_is_its_json(tmp_path: Path) -> None:
    cohorts.save(tmp_path / "clients", MIXED)
    report = clair_cli.merge(tmp_path / "clients").report
    assert report.to_dict() == json.loads(report_json(report))
    assert pickle.loads(pickle.dumps(report)) == report
    (tmp_path / "r.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
    assert clair_cli.load_report(tmp_path / "r.json").to_dict() == report.to_dict()
