"""What a notebook shows of reports and results."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from clair_cli.api import InspectResult, MergeResult, RefineResult
from clair_cli.report.model import Report
from tests.fake_report import all_benign, fake_report, undetermined
from tests.html.hostile import HOSTILE, hostile


class Cells(HTMLParser):
    """The texts of a table's cells, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.add(tag)
        self._inside = tag == "td"
        if self._inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def test_who_was_left_out_stands_first() -> None:
    text = fake_report()._repr_html_()
    assert "<strong>clair merge: 3 contaminated, 1 suspicious, 1 duplicate, 1 rejected" in text
    reason = "unlike the others (has 0.03 of what two of the others share)"
    assert Cells(text).cells[:5] == ["amber", "contaminated", "likely", "out", reason]
    assert "clair merge: undetermined: 2 undetermined" in undetermined()._repr_html_()


@pytest.mark.parametrize(("many", "more"), [(30, ""), (31, "<p>and 1 more</p>")])
def test_it_is_short(many: int, more: str) -> None:
    text = all_benign(many)._repr_html_()
    assert len(Cells(text).cells) == 5 * 30
    assert text.endswith(more or "</table>")


def test_hostile_words_are_text() -> None:
    found = Cells(hostile()._repr_html_())
    assert found.tags == {"p", "strong", "table", "tr", "th", "td"}
    assert HOSTILE[0] in found.cells
    assert all(cell.isprintable() for cell in found.cells)


@pytest.mark.parametrize("report", [fake_report()])
def test_results_show_their_report(report: Report) -> None:
    results = (
        MergeResult(report, None, None, None),
        InspectResult(report, None),
        RefineResult(report, {}, None),
    )
    assert {result._repr_html_() for result in results} == {report._repr_html_()}
