"""`clair schema`: the JSON Schema of the report, in which everything is described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema

from clair_cli.report.encode import load_schema, report_dict
from tests.cohorts import clair
from tests.fake_report import fake_report


def undescribed(schema: Any, where: str = "") -> Iterator[str]:
    """Fields and definitions, at any depth, without a description that ends like a sentence."""
    if not isinstance(schema, dict):
        return
    for kind in ("properties", "$defs"):
        for name, inside in schema.get(kind, {}).items():
            if not str(inside.get("description", "")).endswith("."):
                yield f"{where}{name}"
            yield from undescribed(inside, f"{where}{name}.")
    for key, inside in schema.items():
        if key not in ("properties", "$defs"):
            for one in inside if isinstance(inside, list) else [inside]:
                yield from undescribed(one, where)


def test_it_prints_the_schema_that_reports_follow() -> None:
    result = clair("schema")
    assert (result.exit_code, result.stderr) == (0, "")
    schema = json.loads(result.stdout)
    assert schema == load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report_dict(fake_report()))


def test_every_field_is_described() -> None:
    assert list(undescribed(load_schema())) == []
    schema = load_schema()
    assert schema["description"]
    del schema["$defs"]["ClientScores"]["properties"]["loading"]["description"]
    assert list(undescribed(schema)) == ["ClientScores.loading"]


def test_it_takes_nothing() -> None:
    assert clair("schema", "x").exit_code == 2
