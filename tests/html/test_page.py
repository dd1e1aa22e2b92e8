"""The page as bytes: the same each time, whole, closed to strangers' words."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from clair_cli.html import page
from clair_cli.html.headline import MEANINGS
from clair_cli.html.page import html_page, render
from clair_cli.pictures.grids import share_grid, similarity_grid, size_grid
from clair_cli.report.model import VERDICTS, ClientReport, Report
from tests.fake_report import all_benign, fake_report, undetermined
from tests.html.hostile import HOSTILE, hostile
from tests.pages import ROOT


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(text).scripts[0])
    return found


OLDER = replace(fake_report().cohort, line=None, line_width=None, coordinates=(), spectrum=())


@pytest.mark.parametrize("command", ["merge", "inspect", "refine"])
def test_the_same_report_gives_the_same_bytes(command: str) -> None:
    assert render(fake_report(command=command)) == render(fake_report(command=command))


@pytest.mark.parametrize(
    "report",
    [
        fake_report(),
        fake_report(command="inspect"),
        fake_report(command="refine"),
        all_benign(30),
        undetermined(),
        replace(undetermined(), clients=()),
        hostile(),
        replace(fake_report(), cohort=OLDER),
    ],
    ids=["merge", "inspect", "refine", "benign", "undetermined", "nobody", "hostile", "older"],
)
def test_a_page_asks_for_nothing_and_runs_one_script(report: Report) -> None:
    text = html_page(report)
    found = Elements(text)
    loading = [
        (tag, name)
        for tag, attributes in found.found
        for name in attributes
        if name in ("src", "srcset", "action", "style")
        or name.startswith("on")
        or (name == "href" and not str(attributes[name]).startswith("#"))
    ]
    assert loading == []
    assert {tag for tag, _ in found.found} & {"img", "iframe", "link", "object", "base"} == set()
    assert len(found.scripts) == 2
    (policy,) = [
        str(attributes["content"])
        for tag, attributes in found.found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_words_are_text() -> None:
    text = html_page(hostile())
    assert "<img" not in text
    assert "{{ 7 * 7 }}" in text  # and not 49
    for character in "\u202e\x1b\u2028\x00":
        assert character not in text
    block = text.split('id="data">', 1)[1].split("</script>", 1)[0]
    assert not set("<>&") & set(block)
    assert block.isascii()
    assert data_of(text)["similarity"]["rows"].count(HOSTILE[0]) == 1


def test_the_heat_maps_have_the_reports_numbers() -> None:
    report = fake_report()
    found = data_of(html_page(report))
    grids = {"similarity": similarity_grid, "share": share_grid, "size": size_grid}
    assert found.keys() == grids.keys()
    for name, make in grids.items():
        grid = make(report)
        assert grid is not None
        shown = found[name]
        assert tuple(shown["rows"]) == grid.rows
        assert tuple(shown["columns"] or shown["rows"]) == grid.columns
        flat = [value for row in grid.values for value in row]
        assert len(flat) == len(shown["values"])
        for value, whole in zip(flat, shown["values"], strict=True):
            assert (value is None) == (whole is None)
            if value is not None:
                assert abs(value - whole / shown["scale"]) <= grid.bound / 1000


@pytest.mark.parametrize("number", [1e308, 5e-324, 0.0])
def test_numbers_of_any_size_make_a_page(number: float) -> None:
    """A report may come from a stranger; it holds finite numbers, of any size."""
    report = fake_report()

    def changed(client: ClientReport) -> ClientReport:
        scores = replace(client.scores, loading=number, loading_se=number)
        modules = {
            n: replace(m, norm=number, similarity=-number) for n, m in client.modules.items()
        }
        return replace(client, scores=scores, modules=modules)

    clients = tuple(changed(c) if k % 3 == 0 else c for k, c in enumerate(report.clients))
    n = len(report.cohort.names)
    cohort = replace(
        report.cohort,
        similarity=tuple(tuple(number * (-1) ** (j + k) for k in range(n)) for j in range(n)),
        coordinates=tuple((number, -number) for _ in range(n)),
        spectrum=(number, -number, number),
        line=number,
        line_width=number,
    )
    assert report.merged is not None
    merged = replace(report.merged, error_by_rank={"8": number, "16": None, "72": 0.0})
    text = html_page(replace(report, clients=clients, cohort=cohort, merged=merged))
    assert data_of(text).keys() >= {"similarity", "size"}
    assert not re.search(r"\b(nan|inf)\b%?\"", text)


def test_who_why_how_sure_and_what_next_are_said() -> None:
    text = re.sub(r"\s+", " ", html_page(fake_report()))
    assert "<h1>3 of 12 clients are contaminated: amber, mallory, zoe;" in text
    assert "unlike the others: 3 % of what two of the others share" in text
    assert "Ask for its label file and data version." in text
    assert "How sure? Clear: " in text
    assert "What to do next" in text
    assert "merged with at most a typical client&#39;s weight" in text  # as one is suspicious


@pytest.mark.parametrize(("report", "shown"), [(fake_report(), "out"), (undetermined(), "-")])
def test_out_is_said_where_others_are_in(report: Report, shown: str) -> None:
    cells = re.findall(r'data-label="Weight"[^>]*>([^<]*)<', html_page(report))
    assert {cell for cell in cells if "%" not in cell} == {shown}


def test_the_commands_name_the_report_that_the_page_is_made_from() -> None:
    assert "clair explain amber --report r.json" in html_page(fake_report(), report_path="r.json")
    assert "clair explain" not in html_page(fake_report())  # which is nowhere


def test_every_verdict_has_a_meaning() -> None:
    assert MEANINGS.keys() == set(VERDICTS)


def test_two_hundred_clients_of_four_hundred_modules_fit_in_three_megabytes() -> None:
    """Counted on smaller ones: a page grows by client, and by client and module."""
    few, many = len(html_page(all_benign(10))), len(html_page(all_benign(60)))
    client = (many - few) / 50 + 140 * 6  # its row, its evidence, its cells; with 140 more cells
    assert 200 * client < 1_000_000
    assert 2 * 200 * 400 * len("-1000,") < 1_000_000


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_and_marks_can_be_seen(theme: int) -> None:
    blocks = re.findall(r"\{ (--paper:.*?) \}", page._file("page.css"), re.DOTALL)
    assert len(blocks) == 3
    assert blocks[1] == blocks[2]  # dark by the system, and by the button
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", blocks[theme]))
    for name in ("ink", "soft", "accent"):
        assert _contrast(colours[name], colours["paper"]) >= 4.5, name
    for verdict in VERDICTS:
        assert _contrast(colours[verdict], colours["paper"]) >= 2.4, verdict  # with an outline
    for end in ("low", "high"):
        assert _contrast(colours[end], colours["mid"]) >= 4.0, end


def test_the_picture_of_the_page_is_small() -> None:
    """tests/html/screenshot.py makes it."""
    data = (ROOT / "docs" / "page.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000
    assert b"page.png" in (ROOT / "docs" / "pictures.md").read_bytes()
