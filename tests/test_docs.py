"""What the README and docs/ name exists, and what a report can hold is explained there."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator

import pytest

from clair_cli.cohort import find
from clair_cli.formats import limits
from clair_cli.report import model
from clair_cli.report.fields import dataclasses_in
from tests.pages import BLOCK, COMMANDS, PAGES, README, ROOT, run_clair

OTHERS = ("CONTRIBUTING.md", "benchmarks/README.md", "sample_adapters/README.md")
LINKING = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in OTHERS}


@functools.cache
def options() -> set[str]:
    """Every option of every command."""
    helps = [run_clair(*command, "--help").stdout for command in ([], *([c] for c in COMMANDS))]
    return {option for text in helps for option in re.findall(r"--[a-z][a-z-]+", text)}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_a_page_names_exists(page: str) -> None:
    text = BLOCK.sub("", PAGES[page]).replace("pytest -n 2 --dist worksteal", "")
    text = re.sub(r"^ray .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\$ docker run .*?(?=clair merge )", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub("`hf download [^`]*`", "", text)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named - options() == set()


def test_the_options_that_people_need_are_named() -> None:
    named = {option for text in PAGES.values() for option in re.findall(r"--[a-z][a-z-]+", text)}
    assert named >= {"--force", "--allow-undetermined", "--previous"}
    assert all(option in README for option in ("--force", "--allow-undetermined", "--previous"))


def test_the_limits_table_has_the_defaults() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \| ", PAGES["docs/formats.md"], re.MULTILINE)
    pairs = [
        f"{name.strip('`')}={value}"
        for names, values in rows
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    ]
    assert sorted(pair.partition("=")[0] for pair in pairs) == sorted(limits.NAMES)
    assert limits.parse_limits(pairs) == limits.Limits()


@functools.cache
def reason_codes() -> set[str]:
    """Every code that a `Finding` or a `Reason` is made with, and those of whole cohorts."""
    codes = set()
    for path in (ROOT / "clair_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                first = node.args[0] if node.args else None
                if node.func.id in ("Finding", "Reason") and isinstance(first, ast.Constant):
                    codes.add(first.value)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NOT_JUDGED":
                codes |= set(ast.literal_eval(node.value))
    return codes


def test_every_reason_is_explained() -> None:
    page = PAGES["docs/reading-the-report.md"]
    section = page.split("\n## Reasons\n", 1)[1].split("\n## ", 1)[0]
    explained = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert {"norm", "no_updates"} <= reason_codes()
    assert set(explained) == reason_codes()


@functools.cache
def remark_codes() -> dict[str, str]:
    """Every code that a remark is made with, and its class, but for blocking ones."""
    found = {"more": "that of the worst"}
    for path in (ROOT / "clair_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                first = node.args[0] if node.args else None
                if node.func.id in ("note", "warning") and isinstance(first, ast.Constant):
                    found[first.value] = node.func.id
    return found | {kind[0]: "note" for kind in (find._EMPTY, find._BESIDE, find._NO_CONFIG)}


def test_every_remark_is_explained() -> None:
    page = PAGES["docs/reading-the-report.md"]
    section = page.split("\n## Remarks\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\w ]+) \| ", section, re.MULTILINE)
    explained = {code: class_ for codes, class_ in rows for code in re.findall(r"\w+", codes)}
    blocking = {code for code, class_ in explained.items() if class_ == "blocking"}
    assert {"same_start", "previous_cancels", "previous_absent", "heads_unrelated"} == blocking
    assert {"rank_capped", "pickle_ignored"} <= remark_codes().keys()
    assert {c: class_ for c, class_ in explained.items() if c not in blocking} == remark_codes()


def test_every_verdict_is_explained() -> None:
    section = PAGES["docs/reading-the-report.md"].split("\n## Reasons\n", 1)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(model.VERDICTS)


@pytest.mark.parametrize("kind", dataclasses_in(model.Report))
def test_every_field_of_the_report_is_explained(kind: type) -> None:
    page = PAGES["docs/reading-the-report.md"].split("\n## The file\n", 1)[1]
    named = set(re.findall(r"`(\w+)`", page))
    assert {field.name.rstrip("_") for field in dataclasses.fields(kind)} - named == set()


def links(text: str) -> Iterator[str]:
    """The targets of a page's links and pictures that are not elsewhere on the net."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The headings as GitHub turns them into anchors."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(LINKING[page]):
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target


def test_the_readme_leads_to_every_page() -> None:
    reached = {target.partition("#")[0] for target in links(README)}
    assert reached >= set(PAGES) - {"README.md"}
    assert "benchmarks/README.md" in reached


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_ours_that_a_page_names_exists(page: str) -> None:
    words = re.findall(
        r"(?:clair_cli|benchmarks|fuzz|sample_adapters|tests)/[\w/.-]*\w", PAGES[page]
    )
    assert [word for word in words if not (ROOT / word).exists()] == []
