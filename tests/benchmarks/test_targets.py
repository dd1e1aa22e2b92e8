"""The targets of the pools: what is counted, and what reaches a bound."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.pools import targets
from benchmarks.pools.score import Result


def result(row: str, **changed: Any) -> Result:
    values: dict[str, Any] = {
        "seed": 2, "setting": "base", "kinds": "backdoor", "bad": {"contaminated": 1},
        "honest": {"benign": 4}, "outcome": "judged", "exit_code": 0,
        "errors": {"mean": 0.3, "clair": 0.0},
    }  # fmt: skip
    return Result(row, **(values | changed))


def line(text: str, results: list[Result]) -> str | None:
    """The line of the first target of that text."""
    return next(one for one in targets.TARGETS if one.text.strip() == text).line(results)


@pytest.mark.parametrize(("missed", "reached"), [(1, True), (2, False)])
def test_clients_are_counted_over_cohorts(missed: int, reached: bool) -> None:
    bad = [{"minority": 3, "contaminated": 3}, {"contaminated": 4 - missed, "suspicious": missed}]
    found = line(
        "two bad or more alike: bad clients found", [result("several", bad=b) for b in bad]
    )
    assert found is not None and f"{10 - missed} of 10" in found
    assert found.rstrip().endswith("no") != reached


@pytest.mark.parametrize(("error", "reached"), [(0.009, True), (0.011, False)])
def test_a_clean_merge_is_near_the_plain_mean(error: float, reached: bool) -> None:
    some = result("clean", bad={}, errors={"clair": error})
    found = line("merge within 1 % of the plain mean", [some])
    assert found is not None and found.rstrip().endswith("no") != reached


def test_a_cohort_without_an_adapter_is_not_near() -> None:
    some = result("clean", bad={}, errors={"mean": 0.0}, outcome="undetermined", exit_code=5)
    found = line("merge within 1 % of the plain mean", [some])
    assert found is not None and "0 of 1" in found


def test_of_single_ones_those_count_whose_mean_is_far_off() -> None:
    far = result("single", errors={"mean": 0.21, "clair": 0.21})
    near = result("single", errors={"mean": 0.19, "clair": 0.1})
    text = "one bad: silent, of cohorts whose plain mean is far off"
    found = line(text, [far, near])
    assert found is not None and "1 of 1" in found
    assert line(text, [near]) is None


@pytest.mark.parametrize(
    ("success", "unnamed", "told"), [(0.29, 1, True), (0.31, 1, False), (0.31, 0, True)]
)
def test_a_backdoor_is_told_or_works_hardly_more(success: float, unnamed: int, told: bool) -> None:
    task = {"benign": {"backdoor": 0.2}, "clair": {"backdoor": success}}
    assert targets.backdoor_is_told(result("single", task=task, unnamed=unnamed)) == told


def test_the_decomposition_is_counted_where_something_was_merged() -> None:
    some = [
        result("several", agrees=True),
        result("several", agrees=False, errors={"clair": 0.3}),
        result("several", agrees=False, errors={}),
        result("several"),
    ]
    told = targets.decomposition_line(some)
    assert "agrees in 1, 0 of them far off" in told
    assert "differs in 1, 1 of them far off" in told


def test_lines_without_a_cohort_are_left_out() -> None:
    lines = list(targets.target_lines([result("all-bad", outcome="undetermined")]))
    assert len(lines) == 2 and "everybody bad" in lines[1]
