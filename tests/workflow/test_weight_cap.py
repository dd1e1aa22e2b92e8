"""`--max-weight`: no client has more of the merge than was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli import UsageError
from clair_cli.workflow.weight_cap import capped
from tests import cohorts
from tests.cohorts import clair
from tests.workflow.test_minority import APART, NAMES
from tests.workflow.test_minority import clients as with_minority

GIVEN = {"c0": 60.0, "c1": 20.0, "c2": 10.0, "c3": 5.0, "c4": 5.0}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), {**cohorts.honest(5), "odd": cohorts.unrelated()})
    Path("w.json").write_text(json.dumps({**GIVEN, "odd": 900.0}))
    return tmp_path


def merged(*args: object) -> dict[str, Any]:
    given = ("--weights", "w.json", "--rank", "full", "--dtype", "float32", "--force", *args)
    result = clair("merge", "clients", "-o", "m.safetensors", *given)
    assert result.exit_code == 0, result.stderr
    return cohorts.read_report(Path("m.report.json"))


def weights(report: Any) -> dict[str, float]:
    clients = report["clients"] if isinstance(report, dict) else vars(report)["clients"]
    rows = [c if isinstance(c, dict) else vars(c) for c in clients]
    return {c["name"]: c["weight"] for c in rows}


def test_the_excess_is_spread_over_the_others_in_proportion(work: Path) -> None:
    """c0 is lowered to 0.3; then the others' 0.7 in the ratio 20 : 10 : 5 : 5, of which c1 has 0.35
    and is lowered too; then 0.4 in the ratio 10 : 5 : 5."""
    report = merged("--max-weight", 0.3)
    wanted = {"c0": 0.3, "c1": 0.3, "c2": 0.2, "c3": 0.1, "c4": 0.1, "odd": 0.0}
    assert weights(report) == pytest.approx(wanted, abs=1e-12)
    deltas = [client.deltas() for client in cohorts.honest(5).values()]
    exact = cohorts.mean(deltas, [0.3, 0.3, 0.2, 0.1, 0.1])
    assert cohorts.relative(cohorts.read_dense(Path("m.safetensors")), exact) <= 1e-5
    spread = report["cohort"]["weights"]
    assert (spread["largest"], spread["capped"]) == (pytest.approx(0.3), ["c0", "c1"])
    assert spread["client"] is None  # two have it
    assert spread["effective_clients"] == pytest.approx(1 / (0.09 + 0.09 + 0.04 + 0.02))
    assert clair("verify", "m.safetensors", "clients", "--weights", "w.json").exit_code == 0


def test_the_report_says_where_weights_are_concentrated(work: Path) -> None:
    spread = merged()["cohort"]["weights"]
    assert (spread["client"], spread["capped"]) == ("c0", [])
    assert spread["largest"] == pytest.approx(0.6)
    assert spread["effective_clients"] == pytest.approx(1 / (0.36 + 0.04 + 0.01 + 2 * 0.0025))
    assert merged("--max-weight", 0.61)["cohort"]["weights"]["capped"] == []
    assert merged("--max-weight", 0.59)["cohort"]["weights"]["capped"] == ["c0"]


@pytest.mark.parametrize("command", ["merge", "inspect", "refine"])
def test_a_share_below_one_over_the_number_merged_is_a_usage_error(
    work: Path, command: str
) -> None:
    output = () if command == "inspect" else ("-o", "out")
    given = (command, "clients", *output, "--weights", "w.json", "--max-weight")
    result = clair(*given, 0.199)
    assert result.exit_code == 2
    assert "max_weight is 0.199, and 5 clients are merged" in result.stderr
    assert not Path("out").exists()
    result = clair(*given, 0.166)  # nobody is judged for that
    assert result.exit_code == 2
    assert "max_weight is 0.166, and 6 clients are given" in result.stderr
    found = clair(*given, 0.2)
    assert found.exit_code == (3 if command == "inspect" else 0), found.stderr


@pytest.mark.parametrize("value", ["0", "1.01", "-0.5", "nan", "half"])
def test_values_that_are_no_share(work: Path, value: str) -> None:
    result = clair("merge", "clients", "-o", "m", "--max-weight", value)
    assert result.exit_code == 2 and "a number above 0, at most 1" in result.stderr


def test_a_round_without_a_verdict_is_capped_too(work: Path) -> None:
    clients = {name: cohorts.unrelated(k) for k, name in enumerate("abc")}
    pairs = {n: (cohorts_state(c), c.fields) for n, c in clients.items()}
    given = {"a": 8.0, "b": 1.0, "c": 1.0}
    result = clair_cli.merge(pairs, weights=given, max_weight=0.5, allow_undetermined=True)
    assert result.report.cohort.outcome == "undetermined"
    assert weights(result.report) == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    with pytest.raises(UsageError, match="3 clients are given"):
        clair_cli.merge(pairs, max_weight=0.33)
    plain = clair_cli.merge(pairs, max_weight=0.34)
    assert (plain.report.exit_code, plain.report.cohort.weights) == (5, None)  # nothing is merged


def cohorts_state(client: cohorts.Client) -> dict[str, Any]:
    state = {cohorts.peft_names("A", m): a for m, a in client.A.items()}
    return state | {cohorts.peft_names("B", m): b for m, b in client.B.items()}


def test_members_of_a_minority_count_among_the_merged() -> None:
    given = dict.fromkeys(NAMES, 1.0) | {"c0": 9.0}
    result = clair_cli.merge(with_minority(), weights=given, max_weight=0.11)
    found = weights(result.report)
    assert all(0 < found[n] < 0.11 for n in APART) and max(found.values()) == pytest.approx(0.11)
    assert sum(found.values()) == pytest.approx(1.0)
    assert clair_cli.inspect(with_minority(), weights=given, max_weight=0.11).report.exit_code == 0
    for how in ("merge", "exclude"):
        n, are = (10, "given") if how == "merge" else (8, "merged")
        with pytest.raises(UsageError, match=f"{n} clients are {are}"):
            clair_cli.merge(with_minority(), max_weight=0.99 / n, minority=how)
        clair_cli.merge(with_minority(), max_weight=1 / n, minority=how)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_a_share_of_exactly_one_over_the_number_gives_equal_weights(n: int) -> None:
    raw = [2.0**k for k in range(n)]
    given = [w / sum(raw) for w in raw]
    assert capped(given, 1 / n) == pytest.approx([1 / n] * n)
    assert capped(given, 1.0) == tuple(given)
