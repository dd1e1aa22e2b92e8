"""What changed between two rounds: kinds, thresholds, words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from clair_cli.cli.app import app
from clair_cli.report.changes import changes_json, compare
from clair_cli.report.encode import report_json
from clair_cli.report.model import ClientReport, Report
from clair_cli.words.changes import change_lines
from tests.fake_report import fake_report
from tests.html.hostile import hostile


def with_client(report: Report, name: str, **fields: Any) -> Report:
    """The report with one client changed; every other has another file."""
    other = [replace(c, sha256="1" * 64 if c.sha256 else None) for c in report.clients]
    clients = tuple(replace(c, **fields) if c.name == name else c for c in other)
    return replace(report, clients=clients)


def kinds(first: Report, second: Report) -> dict[str, str]:
    return {change.name: change.kind for change in compare(first, second).clients}


def loading(report: Report, name: str, value: float) -> ClientReport:
    client = next(c for c in report.clients if c.name == name)
    return replace(client, scores=replace(client.scores, loading=value))


def test_a_round_and_the_same_clients_later() -> None:
    first = fake_report()
    found = compare(first, with_client(first, "", verdict=""))
    assert {change.kind for change in found.clients} == {"same"}
    assert not found.options
    assert change_lines(found)[-1].startswith("12 clients as before: amber, bob, ")


@pytest.mark.parametrize(
    ("name", "fields", "kind"),
    [
        ("bob", {"verdict": "contaminated"}, "worse"),
        ("bob", {"verdict": "suspicious"}, "worse"),
        ("oscar", {"verdict": "benign", "reasons": ()}, "better"),
        ("bob", {"confidence": "open"}, "changed"),
        ("oscar", {"reasons": ()}, "changed"),
        ("bob", {"sha256": "0" * 64}, "same"),
        ("bob", {"weight": 0.1}, "same"),
    ],
)
def test_the_kind_of_a_change(name: str, fields: dict[str, Any], kind: str) -> None:
    first = fake_report()
    found = kinds(first, with_client(first, "", verdict=""))
    second = with_client(first, name, **fields)
    assert kinds(first, second) == {**found, name: kind}


@pytest.mark.parametrize(("value", "kind"), [(0.98 - 0.21, "same"), (0.98 - 0.22, "changed")])
def test_a_loading_is_another_beyond_three_standard_errors(value: float, kind: str) -> None:
    """Each has one of 0.05, and their difference one of 0.0707."""
    first = fake_report()
    scores = loading(first, "bob", value).scores
    assert kinds(first, with_client(first, "bob", scores=scores))["bob"] == kind


def test_who_came_and_who_went() -> None:
    first = fake_report()
    second = with_client(first, "", verdict="")
    second = replace(
        second,
        clients=tuple(replace(c, name="kim") if c.name == "zoe" else c for c in second.clients),
        options={**second.options, "rank": 8, "device": "cpu", "output": "elsewhere"},
    )
    found = compare(first, second)
    assert [(c.name, c.kind) for c in found.clients[:2]] == [("kim", "new"), ("zoe", "gone")]
    assert found.options == {"rank": ("auto", 8)}
    lines = change_lines(found)
    assert "  kim: contaminated (clear) (in a group)" in lines
    assert "  zoe: was contaminated (clear) (in a group)" in lines
    assert "option rank: 'auto' before, 8 now" in lines


def test_a_change_in_words() -> None:
    first = fake_report()
    scores = loading(first, "bob", 0.1).scores
    second = with_client(first, "bob", verdict="contaminated", weight=0.0, scores=scores)
    assert (
        "  bob: benign (clear) before, contaminated (clear) now; 98 % before and 10 % now of what"
        " two of the others share; weight 15.0 % before, none now"
    ) in change_lines(compare(first, second))


def test_a_verdict_of_a_person_is_not_called_sure() -> None:
    first = fake_report()
    second = with_client(first, "zoe", verdict="benign", judged="contaminated")
    lines = change_lines(compare(first, second))
    assert "  zoe: contaminated (clear) before, benign now (in a group)" in lines


def test_a_file_that_was_sent_again_is_named() -> None:
    first = fake_report()
    assert change_lines(compare(first, first))[-1].startswith("11 clients sent the same weights")
    second = with_client(first, "bob", sha256="0" * 64)
    assert change_lines(compare(first, second))[-1] == (
        "1 client sent the same weights file again: bob"
    )


def test_hostile_names_are_escaped() -> None:
    lines = change_lines(compare(fake_report(), hostile()))
    assert all(line.isprintable() for line in lines)


def test_the_command_and_its_json(tmp_path: Path) -> None:
    first = fake_report()
    second = with_client(first, "bob", verdict="contaminated")
    for name, report in (("1.json", first), ("2.json", second)):
        (tmp_path / name).write_text(report_json(report), encoding="utf-8")
    runner = typer.testing.CliRunner()
    paths = [str(tmp_path / "1.json"), str(tmp_path / "2.json")]
    result = runner.invoke(app, ["diff", *paths], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == change_lines(compare(first, second))
    result = runner.invoke(app, ["diff", *paths, "--json"], catch_exceptions=False)
    assert result.stdout == changes_json(compare(first, second))
    found = json.loads(result.stdout)
    assert found["schema"] == "clair.diff/1"
    assert found["clients"][0]["name"] == "bob"
    assert found["clients"][0]["before"]["verdict"] == "benign"
    assert runner.invoke(app, ["diff", paths[0], str(tmp_path / "no")]).exit_code == 2
