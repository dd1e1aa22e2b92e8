"""Names are hostile: whatever a client is called, every output keeps its shape.

Each form of `FORMATS` that can be made here is tried, so that a new one is tried by being there.
"""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from clair_cli.cli.render import View, render
from clair_cli.errors import UsageError
from clair_cli.pipeline_options import REPORT_FORMATS
from clair_cli.rendered.formats import FORMATS
from clair_cli.rendered.github import annotation_lines
from clair_cli.report.model import Report
from clair_cli.text import printable
from tests.rendered.renaming import NAMES, with_words

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "::error::x",
    "a|b",
    "=cmd()",
    "x\n## y\r\n::error::z\n\n| a | b |",
    "\x1b[31m\x00\x07\x85\u2028",
    "\u202eevil\u2066\u200f\ufeff",
    "[x](https://evil.example) www.evil.example @everyone :smile: {0}",
    "`c` *b* _i_ ~~s~~ $m$ <!-- --> \\",
    "]]>&amp;&#0;<![CDATA[\"'",
    "##vso[task.complete] ##[error]x",
    "100%,a:b%0A",
    "1. x",
    "    - [ ] x",
    "caf\udce9\ud800",
    "# x",
    "${{ github.token }} $(id) `id`",
    "n" * 250,
)
TAME = tuple(f"{name}x" for name in NAMES)


def names_for(first: int) -> dict[str, str]:
    """All hostile names but for those before `first`, one for each client, then the first again."""
    turned = [*HOSTILE[first:], *HOSTILE[:first]]
    return dict(zip(NAMES, turned, strict=False))


REPORTS = [with_words({**names_for(first), "layers.0.q_proj": HOSTILE[first]})
           for first in range(0, len(HOSTILE), 4)]  # fmt: skip
USUAL = with_words(dict(zip(NAMES, TAME, strict=True)))


def made_here() -> Iterator[str]:
    for name, one in FORMATS.items():
        try:
            one.check()
        except UsageError:
            continue
        yield name


FORMS = list(made_here())


def shape_of_json(data: bytes) -> Any:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            # what is named by strangers is counted, the rest is compared
            own = all(re.fullmatch(r"[$\w/]+", key) for key in value)
            return {k: shape(v) for k, v in value.items()} if own else [shape(v) for v in
                                                                       value.values()]  # fmt: skip
        if isinstance(value, list):
            return [shape(item) for item in value]
        return type(value)

    return shape(json.loads(data))


def shape_of_xml(data: bytes) -> list[tuple[str, list[str]]]:
    return [(e.tag, sorted(e.attrib)) for e in ElementTree.fromstring(data).iter()]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, sorted(name for name, _ in attrs)))

    handle_startendtag = handle_starttag


def shape_of_html(data: bytes) -> list[tuple[str, list[str]]]:
    parser = _Tags()
    parser.feed(data.decode("utf-8"))
    return sorted(parser.seen)


def shape_of_markdown(data: bytes) -> list[str]:
    """Kinds of blocks, and what is more than text in a line."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(data.decode()):
        found.append(token.type)
        for inner in token.children or ():
            if inner.type == "html_inline":
                assert inner.content in ("<code>", "</code>")
            elif inner.type not in ("text", "text_special", "softbreak", "strong_open",
                                    "strong_close"):  # fmt: skip
                raise AssertionError(f"{inner.type} in {token.content!r}")
    return found


SHAPES: dict[str, Callable[[bytes], Any]] = {
    "json": shape_of_json, "sarif": shape_of_json, "codequality": shape_of_json,
    "junit": shape_of_xml, "html": shape_of_html, "markdown": shape_of_markdown,
}  # fmt: skip


def test_every_form_is_in_the_table() -> None:
    assert tuple(FORMATS) == REPORT_FORMATS
    assert set(SHAPES) == set(FORMATS)
    assert set(FORMS) >= {"json", "markdown", "sarif", "junit", "codequality"}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("form", FORMS)
def test_hostile_names_change_no_shape(form: str, report: Report) -> None:
    data = FORMATS[form].render(report)
    usual = FORMATS[form].render(USUAL)
    assert without_commands(SHAPES[form](data)) == without_commands(SHAPES[form](usual))
    assert is_clean(data.decode("utf-8"), but="\n")


def without_commands(shape: Any) -> Any:
    """A command to copy is left out where a name can't be typed."""
    if isinstance(shape, list) and "fence" in shape:
        return [kind for kind in shape if kind != "fence"]
    return shape


def is_clean(text: str, but: str = "") -> bool:
    """Whether nothing in it steers a terminal, turns the line round or is half a character; and no
    line is a command to a CI system."""
    assert not re.search(r"##(vso)?\[", text)
    assert not re.search(r"^\s*::", text, re.MULTILINE)
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or c in but
               for c in text)  # fmt: skip


@pytest.mark.parametrize("report", REPORTS)
def test_annotations_are_commands_of_ours_only(report: Report) -> None:
    lines = annotation_lines(report).splitlines()
    usual = annotation_lines(USUAL).splitlines()
    assert len(lines) == len(usual) <= 10
    for line in lines:
        assert re.fullmatch(r"::(error|warning|notice) title=clair[^:,\n]*::[^\n]*", line)
        assert is_clean(line.removeprefix("::"))
        assert not re.search("%(?!25|0A|0D|3A|2C)", line)


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("view", [View(80, False, True), View(None, False, False)])
def test_the_terminal_shows_names_and_obeys_none(report: Report, view: View) -> None:
    text = render(report, view)
    assert is_clean(text, but="\n")
    if view.width is None:
        assert printable(HOSTILE[0]) in render(REPORTS[0], view)


@pytest.mark.parametrize("report", REPORTS)
def test_a_page_with_commands_is_clean_too(report: Report) -> None:
    """With a report's path there are commands to copy, which have names in them."""
    for form in sorted({"html", "markdown"} & set(FORMS)):
        found = FORMATS[form].render(report, "r.json")
        usual = FORMATS[form].render(USUAL, "r.json")
        assert is_clean(found.decode("utf-8"), but="\n")
        if form == "html":
            shapes = [[tag for tag in shape_of_html(page) if tag[0] != "pre"]
                      for page in (found, usual)]  # fmt: skip
            assert shapes[0] == shapes[1]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_report_gives_the_same_bytes(form: str) -> None:
    assert FORMATS[form].render(REPORTS[0]) == FORMATS[form].render(REPORTS[0])


opened: list[str] = []
watching: list[bool] = []


def test_no_path_in_a_report_is_opened() -> None:
    """Reports are given back by strangers: nothing that they name is looked at."""

    def seen(event: str, args: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir"):
            opened.append(str(args[0]))

    sys.addaudithook(seen)
    place = "/somewhere/else"
    report = with_words({"merged.safetensors": place})
    clients = tuple(replace(client, path=f"{place}/{client.name}") for client in report.clients)
    report = replace(report, clients=clients, options={**report.options, "clients": place})
    watching.append(True)
    try:
        for form in FORMS:
            FORMATS[form].render(report)
        annotation_lines(report)
        with open(__file__, "rb"):
            pass
    finally:
        watching.clear()
    assert opened[-1] == __file__ and not any(place in path for path in opened)


@pytest.mark.parametrize("report", REPORTS)
def test_a_row_of_markdown_holds_its_client(report: Report) -> None:
    """Cells too many would be dropped by who renders it, and the reasons with them."""
    text = FORMATS["markdown"].render(report).decode()
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {6}
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = [t for before, t in pairwise(tokens) if before.type == "td_open"]
    names = ["".join(inner.content for inner in cell.children or () if inner.type[:4] == "text")
             for cell in cells[::5]]  # fmt: skip
    assert sorted(names) == sorted(printable(client.name) for client in report.clients)


@pytest.mark.parametrize("report", REPORTS)
def test_sarif_has_no_link_and_no_address_of_a_stranger(report: Report) -> None:
    (run,) = json.loads(FORMATS["sarif"].render(report))["runs"]
    for result in run["results"]:
        text = result["message"]["text"]
        assert not re.search(r"(?<!\\)\]\(", text)
        assert not re.search("[{}]", text.replace("{{", "").replace("}}", ""))
        for place in result["locations"]:
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"(?:[A-Za-z0-9_.~/-]|%[0-9A-F]{2})+", uri)
            assert uri.startswith(("clients", "%", "caf")) or "/" not in uri


def test_names_arrive_as_they_are_printed() -> None:
    report = REPORTS[0]
    expected = [printable(client.name) for client in report.clients]
    root = ElementTree.parse(io.BytesIO(FORMATS["junit"].render(report)))
    cases = [case.get("name") for case in root.iter("testcase")]
    assert cases == ["the round", *expected]
    sarif = json.loads(FORMATS["sarif"].render(report))
    told = {
        where["name"]
        for result in sarif["runs"][0]["results"]
        for place in result["locations"]
        for where in place.get("logicalLocations", [])
    }
    found = {printable(c.name) for c in report.clients if c.verdict != "benign"}
    assert told == found
