"""A report as SARIF 2.1.0 (OASIS), for code scanning: a result for each finding."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from clair_cli.rendered.as_json import json_bytes
from clair_cli.rendered.findings import LEVELS, RULES, Finding, findings
from clair_cli.report.model import Report

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(report: Report) -> bytes:
    """The report as SARIF: ASCII, the same bytes for the same report."""
    found = findings(report)
    rules = sorted({one.rule for one in found})
    run = {
        "tool": {
            "driver": {
                "name": "clair",
                "version": report.version,
                "rules": [_rule(name) for name in rules],
            }
        },
        "invocations": [{"executionSuccessful": True, "exitCode": report.exit_code}],
        "results": [_result(one, rules.index(one.rule)) for one in found],
        "properties": {
            "command": report.command,
            "outcome": report.cohort.outcome,
            "clients": report.cohort.n_clients,
        },
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json_bytes(document)


def _rule(name: str) -> dict[str, Any]:
    text = RULES.get(name, "A remark on the round; docs/reading-the-report.md has all of them.")
    return {
        "id": name,
        "shortDescription": {"text": text},
        "fullDescription": {"text": text},
        "help": {"text": f"{text} The JSON report has the numbers."},
        "defaultConfiguration": {"level": LEVELS.get(name, "warning")},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    location: dict[str, Any] = {}
    if finding.path:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": _uri(finding.path)},
            "region": {"startLine": 1},  # GitHub wants one, of a weights file too
        }
    if finding.client:
        location["logicalLocations"] = [{"name": finding.client, "kind": "member"}]
    text = f"{finding.client}: {finding.text}" if finding.client else finding.text
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.level,
        "message": {"text": _message(text)},
        "locations": [location] if location else [],
        "partialFingerprints": {"clairFinding/v1": finding.fingerprint},
        "properties": {"reasons": list(finding.reasons)},
    }


def _message(text: str) -> str:
    """A text without links and places to fill in: `[x](y)` and `{0}` mean something in SARIF."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "\\](")


def _uri(path: str) -> str:
    """A path as given, as a URI reference; one from the root as a file's."""
    quoted = quote(path, safe="/")
    return f"file://{quoted}" if quoted.startswith("/") else quoted
