"""The report file: strict, canonical, and what its schema says."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from typing import get_args

import jsonschema
import numpy as np
import pytest

from clair_cli.maths.judge.verdicts import LEAST_P
from clair_cli.remark import Remark, RemarkClass
from clair_cli.report import cohort as cohort_module
from clair_cli.report import model as report_module
from clair_cli.report import results
from clair_cli.report.encode import _indented, report_dict, report_json
from clair_cli.report.fields import dataclasses_in, later_keys
from clair_cli.report.model import VERDICTS, Reason, Report
from clair_cli.report.schema import descriptions, report_schema
from tests.fake_report import all_benign, fake_report, renamed, undetermined, with_score

REPORTS = {
    "merge": fake_report(),
    "inspect": fake_report(command="inspect"),
    "refine": fake_report(command="refine"),
    "undetermined": undetermined(),
    "all benign": all_benign(),
    "no decomposition": replace(
        fake_report(), cohort=replace(fake_report().cohort, decomposition=None)
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_text_is_that_of_the_json_module(name: str) -> None:
    plain = report_dict(REPORTS[name])
    expected = json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n"
    assert report_json(REPORTS[name]) == expected.replace("##", "#\\u0023")


@pytest.mark.parametrize(
    "value",
    [
        {}, [], {"b": [], "a": {}}, [[], [1, 2.5, None, True], {"z": "\u00e9\n", "a": [[1], 2]}],
        {"x": [{"b": 1, "a": "] , ["}], "w": 1e300}, 3, "text", None, [[[]]], {"a": {"b": {}}},
    ],
)  # fmt: skip
def test_any_nesting_is_written_as_the_json_module_writes_it(value: object) -> None:
    expected = json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
    assert _indented(value, "\n") == expected


def validate(document: object) -> None:
    jsonschema.Draft202012Validator(report_schema()).validate(document)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())


@pytest.mark.parametrize("name", REPORTS)
def test_reports_follow_the_schema(name: str) -> None:
    validate(json.loads(report_json(REPORTS[name])))


PARTS = dataclasses_in(Report)

LATER: dict[type, set[str]] = {
    cohort_module.CohortReport: {"line", "line_width", "coordinates", "spectrum"},
    report_module.ClientReport: {"earlier", "heads", "judged", "review"},
    results.MergedReport: {"heads"},
    results.RefinedReport: {"heads"},
}


@pytest.mark.parametrize("cls", PARTS, ids=lambda c: c.__name__)
def test_the_schema_has_exactly_the_fields_of_the_dataclass(cls: type) -> None:
    schema = report_schema()
    part = schema if cls is Report else schema["$defs"][cls.__name__]
    names = {field.name.rstrip("_") for field in fields(cls)}
    assert set(part["properties"]) == names
    # fields that came later may be absent: those reports are read as well
    assert names - set(part["required"]) == LATER.get(cls, set())
    assert part["additionalProperties"] is False


def test_the_schema_has_no_definition_of_something_gone() -> None:
    names = {cls.__name__ for cls in PARTS} - {"Report"}
    assert set(report_schema()["$defs"]) == names


def described(schema: object, where: str = "") -> dict[str, object]:
    """The description of every field and every definition of a schema, by where it is; None where
    there is none."""
    found: dict[str, object] = {}
    if not isinstance(schema, dict):
        return found
    for group in ("properties", "$defs"):
        for name, part in schema.get(group, {}).items():
            found[f"{where}/{name}"] = part.get("description")
            found |= described(part, f"{where}/{name}")
    return found


def test_every_field_of_the_schema_is_described() -> None:
    found = described(report_schema())
    fields_of = {
        f"{'' if cls is Report else '/' + cls.__name__}/{field.name.rstrip('_')}"
        for cls in PARTS
        for field in fields(cls)
    }
    assert fields_of <= found.keys()
    assert {where for where, text in found.items() if not is_a_sentence(text)} == set()


def is_a_sentence(text: object) -> bool:
    """Whether it is one sentence that reads as one: no more, and no name alone."""
    return isinstance(text, str) and re.fullmatch(r"[\w-](?:[^.\n]|\.(?! ))+\.", text) is not None


@pytest.mark.parametrize("cls", PARTS, ids=lambda c: c.__name__)
def test_a_docstring_describes_the_fields_that_there_are(cls: type) -> None:
    """The schema's descriptions are made from them."""
    about, said = descriptions(cls)
    assert about and list(said) == [field.name for field in fields(cls)]


def test_later_fields_are_those_that_the_schema_does_not_require() -> None:
    assert later_keys(Report) == set().union(*LATER.values())


def test_the_schema_is_made_without_docstrings_too() -> None:
    """Python leaves them out with -OO."""

    class Bare:
        pass

    assert descriptions(Bare) == (None, {})


def test_the_schema_knows_the_least_p_honest() -> None:
    p_honest = report_schema()["$defs"]["ClientReport"]["properties"]["p_honest"]
    assert p_honest["minimum"] == LEAST_P
    assert f"never stated below {LEAST_P:g}" in p_honest["description"]


def test_the_schema_knows_the_verdicts() -> None:
    verdict = report_schema()["$defs"]["ClientReport"]["properties"]["verdict"]
    assert verdict["enum"] == list(VERDICTS)


def test_the_schema_knows_the_classes_of_remarks() -> None:
    known = report_schema()["$defs"]["Remark"]["properties"]["class"]["enum"]
    assert known == list(get_args(RemarkClass))
    wrong = Remark("x", "fatal", "x")  # type: ignore[arg-type]
    with pytest.raises(jsonschema.ValidationError, match="fatal"):
        validate(json.loads(report_json(replace(fake_report(), warnings=(wrong,)))))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("verdict", "malicious"),
        ("weight", 1.5),
        ("weight", float("nan")),
        ("p_honest", 0.0009),
        ("p_honest", 1.5),
        ("confidence", "certain"),
        ("power", 1.01),
        ("sha256", "abc"),
        ("name", ""),
        ("ranks", (8.5,)),
        ("reasons", (Reason("Bad code", "x"),)),
    ],
)
def test_the_schema_refuses_what_a_report_can_not_say(change: str, value: object) -> None:
    good = fake_report()
    client = replace(good.clients[0], **{change: value})
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate(json.loads(report_json(replace(good, clients=(client,)))))


def test_the_schema_refuses_an_unknown_key() -> None:
    document = report_dict(fake_report())
    document["clients"][0]["malicious"] = True
    with pytest.raises(jsonschema.ValidationError, match="malicious"):
        validate(document)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_has_no_word_for_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_json(with_score(fake_report(), loading=value))


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3)])
def test_a_number_that_is_not_plain_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a report can't hold"):
        report_json(with_score(fake_report(), loading=value))


def test_canonical_bytes() -> None:
    text = report_json(fake_report())
    assert text == report_json(fake_report())
    assert text.endswith("}\n")
    assert not text.endswith("\n\n")
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"


def test_the_order_of_keys_does_not_reach_the_bytes() -> None:
    report = fake_report()
    turned = replace(report, options=dict(reversed(list(report.options.items()))))
    assert report_json(turned) == report_json(report)


def test_a_name_that_is_not_unicode_stays_readable_json() -> None:
    text = report_json(renamed(fake_report(), {"amber": "am\udcffber", "zoe": "zo\u00eb\x1b"}))
    names = [c["name"] for c in json.loads(text)["clients"]]
    assert "am\\xffber" in names
    assert "zo\u00eb\x1b" in names
    text.encode("utf-8")
