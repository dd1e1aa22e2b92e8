"""SARIF and JUnit follow their schemas, and each form says what the report says."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema

from clair_cli.errors import UsageError
from clair_cli.remark import note, warning
from clair_cli.rendered import codequality, formats, github, junit, markdown, sarif
from clair_cli.report.model import ClientReport, ClientScores, Reason, Report
from clair_cli.words.outcomes import OUTCOMES
from clair_cli.words.reasons import REASONS
from tests.fake_report import all_benign, fake_report, undetermined
from tests.rendered.test_hostile import REPORTS

SCHEMAS = Path(__file__).parent.parent / "schemas"


def with_every_reason() -> Report:
    """A suspicious client for each reason code that there is."""
    base = fake_report()
    clients = [
        replace(base.clients[0], name=f"s-{code}", verdict="suspicious",
                reasons=(Reason(code, "5 times the median"),))
        for code in (*REASONS, *OUTCOMES, "not_known_yet")
    ]  # fmt: skip
    return replace(base, clients=(*base.clients, *clients))


def refused() -> Report:
    report = undetermined()
    cohort = replace(report.cohort, outcome="refused", outcome_text="no usable client", remedy="")
    clients = tuple(
        ClientReport(c.name, "rejected", (Reason("rejected", "no"),), ClientScores(), 0.0, None, "")
        for c in report.clients
    )
    return replace(report, cohort=cohort, clients=clients, exit_code=4)


ALL = {
    "all kinds": fake_report(),
    "inspect": fake_report(command="inspect"),
    "refine": fake_report(command="refine"),
    "benign": all_benign(),
    "nobody": replace(all_benign(), clients=()),
    "undetermined": undetermined(),
    "refused": refused(),
    "every reason": with_every_reason(),
    "remarks": replace(fake_report(), warnings=(note("x", "n"), warning("capped", "w | x"))),
    **{f"hostile {number}": report for number, report in enumerate(REPORTS)},
}


@cache
def sarif_schema() -> Any:
    text = (SCHEMAS / "sarif-schema-2.1.0.json").read_text(encoding="utf-8")
    return jsonschema.Draft4Validator(
        json.loads(text), format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER
    )


@cache
def junit_schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd")


@pytest.mark.parametrize("name", ALL)
def test_sarif_follows_its_schema(name: str) -> None:
    document = json.loads(sarif.render(ALL[name]))
    sarif_schema().validate(document)
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[r["ruleIndex"]] for r in run["results"]] == [r["ruleId"] for r in run["results"]]
    marks = [r["partialFingerprints"]["clairFinding/v1"] for r in run["results"]]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("name", ALL)
def test_junit_follows_its_schema(name: str) -> None:
    data = junit.render(ALL[name])
    junit_schema().validate(data.decode("ascii"))
    (suite,) = ElementTree.fromstring(data)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == len(list(suite.iter(tag))), attribute
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    assert len(suite.findall("testcase")) == len(ALL[name].clients) + 1


def test_the_schemas_refuse_what_is_wrong() -> None:
    document = json.loads(sarif.render(fake_report()))
    document["runs"][0]["results"][0]["level"] = "bad"
    assert not sarif_schema().is_valid(document)
    wrong = (
        junit.render(fake_report()).replace(b"<failure", b"<fault").replace(b"/failure", b"/fault")
    )
    assert not junit_schema().is_valid(wrong.decode("ascii"))


@pytest.mark.parametrize("name", ALL)
def test_code_quality_has_what_gitlab_needs(name: str) -> None:
    entries = json.loads(codequality.render(ALL[name]))
    for entry in entries:
        assert entry.keys() == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in ("info", "minor", "major", "critical", "blocker")
        assert entry["description"] and entry["location"]["path"]
        assert entry["location"]["lines"] == {"begin": 1}
    assert len({entry["fingerprint"] for entry in entries}) == len(entries)


def test_what_is_found_by_verdict() -> None:
    levels = [
        (r["logicalLocations"], r["ruleId"], r["level"])
        for r in (
            {**result, "logicalLocations": result["locations"][0]["logicalLocations"][0]["name"]}
            for result in json.loads(sarif.render(fake_report()))["runs"][0]["results"]
        )
    ]
    assert levels == [
        ("amber", "contaminated", "error"), ("mallory", "contaminated", "error"),
        ("zoe", "contaminated", "error"), ("oscar", "suspicious", "warning"),
        ("dave-copy", "duplicate", "note"), ("rita", "rejected", "error"),
    ]  # fmt: skip
    cases = ElementTree.fromstring(junit.render(fake_report())).iter("testcase")
    kinds = {case.attrib["name"]: next(child.tag for child in case) for case in cases}
    assert {name for name, kind in kinds.items() if kind == "failure"} == {
        "amber",
        "mallory",
        "zoe",
    }
    assert (kinds["rita"], kinds["dave-copy"], kinds["oscar"]) == ("error", "skipped", "system-out")


@pytest.mark.parametrize(
    ("report", "words"),
    [(undetermined(), "::error title=clair%3A undetermined::2 clients: can't tell"),
     (fake_report(), "::warning title=clair%3A amber%3A contaminated::"),
     (fake_report(command="inspect"), "::error title=clair%3A amber%3A contaminated::")],
)  # fmt: skip
def test_annotations_are_errors_where_the_run_ends(report: Report, words: str) -> None:
    assert github.annotation_lines(report).startswith(words)


def contaminated(number: int) -> Report:
    report = all_benign(number)
    clients = tuple(replace(c, verdict="contaminated") for c in report.clients)
    return replace(report, clients=clients)


@pytest.mark.parametrize(
    ("number", "lines", "more"), [(0, 0, ""), (9, 9, ""), (10, 10, ""), (11, 10, "2 more findings")]
)
def test_at_most_ten_annotations(number: int, lines: int, more: str) -> None:
    found = github.annotation_lines(contaminated(number)).splitlines()
    assert len(found) == lines
    assert (more in found[-1]) if more else not any("more findings" in line for line in found)


# Markdown


def large(number: int) -> Report:
    """Many clients with long names and long reasons, each character of which is escaped."""
    report = contaminated(number)
    clients = tuple(
        replace(c, name=f"{c.name}{'|' * 240}", verdict="rejected",
                reasons=(Reason("rejected", f"{c.name} {'<' * 1900}"),))
        for c in report.clients
    )  # fmt: skip
    return replace(report, clients=clients, warnings=tuple(note("x", "|" * 900) for _ in clients))


@pytest.mark.parametrize("limit", [markdown.MAX_BYTES, 60_000])
def test_markdown_stays_below_its_limit(limit: int) -> None:
    data = markdown.render(large(200), limit)
    assert limit / 2 < len(data) <= limit < 2**20
    text = data.decode()
    assert " more clients |" in text and " more remarks" in text
    assert text.count("<code>") == text.count("</code>")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {6}


def test_markdown_leaves_nothing_out_where_it_fits() -> None:
    text = markdown.render(fake_report()).decode()
    assert " more " not in text.partition("### Next steps")[0]
    assert all(f"<code>{c.name}</code>" in text for c in fake_report().clients)
    assert text.startswith("## clair merge: 3 of 12 clients contaminated, 1 suspicious,")
    assert "Merged 7 into <code>merged.safetensors</code>: rank 16" in text


@pytest.mark.parametrize(
    ("levels", "words"),
    [("contaminated", "Nothing was written: --fail-on contaminated (exit code 3)."),
     (["10%", "3"], "Nothing was written: --fail-on 10%, 3 (exit code 3).")],
)  # fmt: skip
def test_markdown_says_what_stopped_the_run(levels: object, words: str) -> None:
    report = replace(fake_report(), merged=None, exit_code=3, options={"fail_on": levels})
    assert words in markdown.render(report).decode()


@pytest.mark.parametrize("name", ALL)
def test_markdown_has_a_next_step(name: str) -> None:
    assert "### Next steps\n\n- " in markdown.render(ALL[name]).decode()


# What is not installed


def test_a_form_that_needs_what_is_missing_says_how_to_install_it() -> None:
    form = formats.ReportFormat("html", "clair_cli.rendered.formats:as_json", "no_such", "html")
    with pytest.raises(UsageError, match="a report as html needs the library no_such") as caught:
        form.check()
    assert caught.value.hint == "pip install 'clair-cli[html]'"
    formats.ReportFormat("json", "clair_cli.rendered.formats:as_json", "json").check()
