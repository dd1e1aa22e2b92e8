"""The quick check of reports that all other tests use, beside jsonschema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from clair_cli.report.encode import report_dict
from clair_cli.report.schema import report_schema
from tests.fake_report import fake_report
from tests.schema import follows

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**12, 0.0009, 0.5, 1.5, 1e9 + 0.5, -0.1, "", "x",
    "Bad code", "a_b", "a" * 64, "0", "00", [], [1], [1, 2], [1, 2, 3], [-1, 2], [None],
    ["x"], [[0.5]], [["x"]],
    {}, {"x": 1}, {"x": None}, {"0": 0.5}, {"0": -0.5}, {"a_b": "a" * 64}, {"B": "a" * 64},
    {"code": "x", "text": "x"}, {"code": "X", "text": "x"}, {"code": "x"},
    {"code": "x", "text": "x", "y": 1},
]  # fmt: skip


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema."""
    if isinstance(schema, dict):
        if {"type", "enum", "const", "$ref", "anyOf"} & schema.keys():
            yield schema
        for name, inside in schema.items():
            listed = name in ("properties", "$defs")
            for one in inside.values() if listed else [inside]:
                yield from parts(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from parts(one)


def test_it_accepts_what_jsonschema_accepts_and_nothing_else() -> None:
    """Each part of the schema, with values of all kinds; 1.0 is left to jsonschema."""
    schema = report_schema()
    every = list(parts(schema))
    assert len(every) > 150
    accepted = 0
    for part in every:
        theirs = jsonschema.Draft202012Validator({**part, "$defs": schema["$defs"]})
        quick = follows(part, schema)
        for value in VALUES:
            assert quick(value) == theirs.is_valid(value), (part, value)
            accepted += quick(value)
    assert accepted > 500


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((), None),
        (("unknown",), 1),
        (("schema",), "clair.report/1"),
        (("clients", 0, "unknown"), 1),
        (("clients", 0, "p_honest"), 1.5),
        (("clients", 0, "scores", "loading"), "much"),
        (("clients", 0, "reasons"), [{"code": "Bad code", "text": "x"}]),
        (("merged", "sha256"), "abc"),
        (("warnings",), [{"class": "fatal"}]),
    ],
)
def test_it_finds_a_fault_wherever_it_is(where: tuple[str | int, ...], value: object) -> None:
    document: Any = report_dict(fake_report())
    assert follows(report_schema())(document)
    inside = document
    for step in where[:-1]:
        inside = inside[step]
    if where:
        inside[where[-1]] = value
    assert not follows(report_schema())(document if where else value)


def test_a_field_that_is_missing_is_missed() -> None:
    document: Any = report_dict(fake_report())
    del document["clients"][0]["verdict"]
    assert not follows(report_schema())(document)


def test_a_keyword_that_it_does_not_know_is_an_error() -> None:
    with pytest.raises(KeyError, match="multipleOf"):
        follows({"type": "integer", "multipleOf": 2})


# What may be any number or any text, the empty one too. All else has a bound, a pattern or words.
FREE = {
    "number": {
        "ClientReport.scales", "ClientScores.loading", "ClientScores.measures",
        "ClientScores.similarity", "CohortReport.coordinates", "CohortReport.level",
        "CohortReport.line", "CohortReport.similarity", "CohortReport.spectrum",
        "DecompositionReport.gap", "EarlierScores.loading", "Group.level", "MergedReport.alpha",
        "MergedReport.scaling",
        "ModuleReport.similarity_inside", "ModuleReport.similarity_outside",
        "ModuleScores.scaling", "ModuleScores.similarity", "RefinedClient.gain",
    },
    "string": {
        "ClientReport.path", "CohortReport.names", "CohortReport.outcome_text",
        "CohortReport.remedy", "DecompositionReport.kept", "DecompositionReport.left_out",
        "Group.members", "MergedReport.path", "ModuleReport.absent", "ModuleReport.name",
        "RefinedClient.path", "RefinedReport.path", "RefinedReport.why", "Review.by",
        "Review.reason", "Review.until", "WeightSpread.capped",
    },
}  # fmt: skip
BOUNDS = {"minimum", "exclusiveMinimum", "minLength", "pattern", "enum"}


def test_no_field_becomes_looser_by_accident() -> None:
    schema = report_schema()
    found: dict[str, set[str]] = {"number": set(), "string": set()}
    for name, part in {"Report": schema, **schema["$defs"]}.items():
        for field, value in part["properties"].items():
            for inside in parts(value):
                given = inside.get("type", ())
                types = {given} if isinstance(given, str) else set(given)
                if types & {"string", "number", "integer"} and not BOUNDS & inside.keys():
                    found["string" if "string" in types else "number"].add(f"{name}.{field}")
    assert found == FREE
