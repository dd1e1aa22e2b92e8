"""The made-up report with other names, everywhere that a name or a word of a stranger stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clair_cli.report.encode import report_dict
from clair_cli.report.load import report_from
from clair_cli.report.model import Report
from tests.fake_report import fake_report

NAMES = tuple(client.name for client in fake_report().clients)


def with_words(words: Mapping[str, str], report: Report | None = None) -> Report:
    """The report with each word replaced wherever it is a text, or a part of a path or a text."""
    plain = report_dict(fake_report() if report is None else report)

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {changed(key): changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        if not isinstance(value, str):
            return value
        if value in words:
            return words[value]
        for old, new in words.items():
            if value.endswith(f"/{old}"):
                return value.removesuffix(old) + new
            if f" {old}" in value:
                return value.replace(f" {old}", f" {new}")
        return value

    return report_from(changed(plain))
