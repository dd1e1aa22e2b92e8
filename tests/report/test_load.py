"""Any report as the dataclasses it was written from; what a stranger changed is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clair_cli.errors import UsageError
from clair_cli.report.encode import report_json
from clair_cli.report.load import load_report, report_from
from clair_cli.report.model import Report
from tests.fake_report import all_benign, fake_report, undetermined
from tests.pages import SAMPLES, run_clair

REPORTS = {
    "merge": fake_report(),
    "inspect": fake_report(command="inspect"),
    "refine": fake_report(command="refine"),
    "undetermined": undetermined(),
    "benign": all_benign(),
}


@pytest.mark.parametrize("name", REPORTS)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(report_json(REPORTS[name]), encoding="utf-8")
    found = load_report(path)
    assert isinstance(found, Report)
    assert report_json(found) == report_json(REPORTS[name])
    assert load_report(str(path)) == found


def test_the_report_of_a_run_is_read_and_written_as_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run_clair("inspect", str(SAMPLES / "clients"), "-o", str(path))
    assert report_json(load_report(path)) == path.read_text(encoding="utf-8")


def test_fields_of_a_later_version_are_passed_over() -> None:
    data = plain()
    data["new"] = data["cohort"]["new"] = {"a": 1}
    assert report_json(report_from(data)) == report_json(fake_report())


def test_fields_of_an_earlier_version_may_be_absent() -> None:
    data = plain()
    del data["inputs"], data["clients"][0]["trusted"]
    assert report_from(data).clients[0].trusted is False


def plain() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report_json(fake_report()))
    return found


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one field of a report."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


CLIENT = ("clients", 0)
WRONG = {
    "clients is 'x', expected a list": put("clients", value="x"),
    "clients[0] is 5, expected an object": put(*CLIENT, value=5),
    "clients[0].name is 5, expected a text": put(*CLIENT, "name", value=5),
    "clients[0].verdict is 'good', expected one of": put(*CLIENT, "verdict", value="good"),
    "clients[0].confidence is 'very', expected one of": put(*CLIENT, "confidence", value="very"),
    "clients[0].trusted is 1, expected true or false": put(*CLIENT, "trusted", value=1),
    "clients[0].weight is True, expected a number": put(*CLIENT, "weight", value=True),
    "clients[0].weight is 1.5, expected 0 to 1": put(*CLIENT, "weight", value=1.5),
    "clients[0].p_honest is 0.0009, expected 0.001 to 1": put(*CLIENT, "p_honest", value=0.0009),
    "clients[0].ranks[0] is 8.5, expected a whole number": put(*CLIENT, "ranks", value=[8.5]),
    "clients[0].modules is [], expected an object": put(*CLIENT, "modules", value=[]),
    "modules[0].shape has 3 items, expected 2": put("modules", 0, "shape", value=[1, 2, 3]),
    "command is 'rm', expected one of": put("command", value="rm"),
    "cohort.outcome is None, expected a text": put("cohort", "outcome", value=None),
    "cohort.groups[0].role is 'x', expected one of": put("cohort", "groups", 0, "role", value="x"),
    "cohort.similarity is no table of 11 clients": put("cohort", "similarity", value=[]),
    "cohort.names has a name that is no client's": put("cohort", "names", 0, value="nobody"),
    "clients[0].modules has a key of 5,000 characters": put(
        *CLIENT, "modules", value={"m" * 5000: 1}
    ),
    "clients[1] has no name": lambda data: data["clients"][1].pop("name"),
    "cohort.similarity[2][1] is 'x', expected a number": put(
        "cohort", "similarity", 2, 1, value="x"
    ),
    "clients[0].name is '', expected a text that is not empty": put(*CLIENT, "name", value=""),
    "clients[0].sha256 is 'abc', expected a SHA-256": put(*CLIENT, "sha256", value="abc"),
    "clients[0].reasons[0].code is 'No', expected a code": put(
        *CLIENT, "reasons", 0, "code", value="No"
    ),
    "cohort.n_clients is -1, expected at least 0": put("cohort", "n_clients", value=-1),
    "exit_code is 1, expected one of 0, 3, 4, 5": put("exit_code", value=1),
    "inputs.A is 'A', expected small letters": put("inputs", value={"A": "0" * 64}),
    "merged.error_by_rank.08 is '08', expected a rank": put(
        "merged", "error_by_rank", value={"08": 0.1}
    ),
    "warnings[0].class is 'bad', expected one of": put("warnings", 0, "class", value="bad"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_field_is_named(words: str, tmp_path: Path) -> None:
    data = plain()
    WRONG[words](data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError, match="is damaged: ") as error:
        load_report(path)
    assert words in error.value.message


@pytest.mark.parametrize("value", ["1e999", "NaN", "Infinity", "1" * 400, "1" * 5000])
def test_no_number_without_bounds_gets_in(value: str, tmp_path: Path) -> None:
    text = report_json(fake_report()).replace('"norm": 2.1', f'"norm": {value}')
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="is damaged: "):
        load_report(path)


def test_a_number_that_no_float_can_hold_is_named() -> None:
    data = plain()
    data["merged"]["norm"] = 10**309
    with pytest.raises(ValueError, match=r"merged.norm is 1000.* that a float can hold"):
        report_from(data)


@pytest.mark.parametrize("field", ["clients", "cohort", "version", "exit_code"])
def test_a_missing_field_is_named(field: str) -> None:
    data = plain()
    del data[field]
    with pytest.raises(ValueError, match=f"the report has no {field}"):
        report_from(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged"),
        ("[]", "is no report of clair"),
        ('{"schema": "clair.report/1"}', "has schema 'clair.report/1'"),
        ('{"schema": "clair.report/2"}', "the report has no version"),
        ('{"schema": "clair.report/2", "schema": 1}', "gives the key 'schema' twice"),
        ("[" * 5000, "is damaged"),
    ],
)
def test_what_is_no_report_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        load_report(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        load_report(tmp_path / "none.json")
