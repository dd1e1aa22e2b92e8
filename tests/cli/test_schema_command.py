"""`clair schema`: the JSON Schema of the report."""

from __future__ import annotations

import json

import jsonschema

from clair_cli.report.encode import report_dict
from clair_cli.report.schema import report_schema
from tests.cohorts import clair
from tests.fake_report import fake_report


def test_it_prints_the_schema_that_reports_follow() -> None:
    result = clair("schema")
    assert (result.exit_code, result.stderr) == (0, "")
    schema = json.loads(result.stdout)
    assert schema == report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report_dict(fake_report()))


def test_it_takes_nothing() -> None:
    assert clair("schema", "x").exit_code == 2
