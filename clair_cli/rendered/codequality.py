"""A report as GitLab's code-quality JSON: an entry for each finding."""

from __future__ import annotations

from clair_cli.rendered.as_json import json_bytes
from clair_cli.rendered.findings import Finding, findings
from clair_cli.report.model import Report

_SEVERITIES = {
    "undetermined": "blocker", "refused": "blocker", "contaminated": "critical",
    "rejected": "major", "minority": "major", "suspicious": "minor", "duplicate": "info",
}  # fmt: skip


def render(report: Report) -> bytes:
    """The report as a code-quality file: ASCII, the same bytes for the same report."""
    entries = [_entry(one) for one in findings(report)]
    return json_bytes(entries)


def _entry(finding: Finding) -> dict[str, object]:
    text = f"{finding.client}: {finding.text}" if finding.client else finding.text
    return {
        "description": text,
        "check_name": f"clair/{finding.rule}",
        "fingerprint": finding.fingerprint,
        "severity": _SEVERITIES.get(finding.rule, "minor"),
        "location": {"path": finding.path or "clients", "lines": {"begin": 1}},
    }
