"""`--report FORMAT=PATH`: several forms of one run, all of them or none, and `-` for stdout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import clair_cli
from clair_cli.errors import OutputError, UsageError
from clair_cli.pipeline_options import REPORT_FORMATS
from clair_cli.rendered import junit
from clair_cli.rendered.formats import FORMATS
from clair_cli.settings import make_settings
from tests import cohorts
from tests.cohorts import clair

OUT = "m.safetensors"
FILES = {"json": "r.json", "markdown": "s.md", "sarif": "c.sarif", "junit": "j.xml",
         "codequality": "q.json"}  # fmt: skip
ALL = [word for form, path in FILES.items() for word in ("--report", f"{form}={path}")]
FEW = ["--report", "junit=j.xml", "--report", "markdown=s.md"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with five clients, one of them contaminated."""
    monkeypatch.chdir(tmp_path)
    cohorts.save(Path("clients"), {**cohorts.honest(4), "odd": cohorts.unrelated()})
    return tmp_path


def outputs(work: Path) -> set[str]:
    return {path.name for path in work.iterdir()} - {"clients"}


@pytest.mark.parametrize(
    ("command", "code"),
    [(("merge", "clients", "-o", OUT), 0), (("merge", "clients", "-o", "m"), 0),
     (("refine", "clients", "-o", "r"), 0), (("inspect", "clients"), 3),
     (("merge", "clients", "-o", OUT, "--fail-on", "contaminated"), 3)],
)  # fmt: skip
def test_all_forms_of_a_run(work: Path, command: tuple[str, ...], code: int) -> None:
    assert clair(*command, *ALL).exit_code == code
    made = {command[3]} if code == 0 else set()
    assert outputs(work) == {*FILES.values(), *made}
    report = clair_cli.load_report("r.json")
    assert report.exit_code == code
    for form, path in FILES.items():
        assert Path(path).read_bytes() == FORMATS[form].render(report, "r.json"), form
    if command[0] != "refine":
        assert "clair explain odd --report r.json" in Path("s.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("output", [OUT, "m"])
def test_verify_finds_the_json_report_where_only_other_forms_are_asked_for(
    work: Path, output: str
) -> None:
    assert clair("merge", "clients", "-o", output, *FEW).exit_code == 0
    usual = {"m.report.json"} if output == OUT else set()
    place = "m.report.json" if output == OUT else "m/report.json"
    assert f"clair explain odd --report {place}\n" in Path("s.md").read_text(encoding="utf-8")
    assert outputs(work) == {output, "j.xml", "s.md", *usual}
    assert clair("verify", output, "clients").exit_code == 0


def test_inspect_writes_its_json_and_other_forms(work: Path) -> None:
    result = clair("inspect", "clients", "-o", "a.json", "--report", "b.json", *FEW)
    assert (result.exit_code, outputs(work)) == (3, {"a.json", "b.json", "j.xml", "s.md"})
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_one_that_exists_leaves_all_unwritten(work: Path) -> None:
    Path("j.xml").write_text("mine", encoding="utf-8")
    result = clair("merge", "clients", "-o", OUT, *ALL)
    assert result.exit_code == 6 and "output 'j.xml' exists" in result.stderr
    assert outputs(work) == {"j.xml"} and Path("j.xml").read_text(encoding="utf-8") == "mine"
    assert clair("merge", "clients", "-o", OUT, *ALL, "--force").exit_code == 0
    assert ElementTree.parse("j.xml").getroot().tag == "testsuites"


@pytest.mark.parametrize("failing", ["render", "publish"])
def test_one_that_fails_late_leaves_all_unwritten(
    work: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(report: Any) -> bytes:
        if failing == "publish":  # somebody takes the place while the run works
            Path("s.md").write_text("mine", encoding="utf-8")
            return b"<x/>"
        raise OutputError("no")

    monkeypatch.setattr(junit, "render", fail)
    assert clair("merge", "clients", "-o", OUT, *ALL).exit_code == 6
    assert outputs(work) == ({"s.md"} if failing == "publish" else set())


@pytest.mark.parametrize(
    ("command", "code", "form"),
    [
        *((("inspect", "clients"), 3, form) for form in FILES),
        *((("merge", "clients", "-o", OUT), 0, form) for form in ("json", "markdown")),
        *((("refine", "clients", "-o", "r"), 0, form) for form in ("json", "sarif")),
    ],
)
def test_a_report_on_stdout(work: Path, command: tuple[str, ...], code: int, form: str) -> None:
    result = clair(*command, "--report", f"{form}=-", "--report", "json=r.json" if form != "json"
                   else "junit=j.xml")  # fmt: skip
    assert result.exit_code == code
    assert "1 of 5 clients contaminated: odd" in result.stderr
    if form != "json":
        report = clair_cli.load_report("r.json")
        assert result.stdout.encode() == FORMATS[form].render(report, "r.json")
    else:
        assert json.loads(result.stdout)["exit_code"] == code
    assert "-" not in outputs(work)


@pytest.mark.parametrize(
    "args",
    [("merge", "-o", "-", "--report", "junit=-"), ("merge", "-o", OUT, "--report", "-", "--github"),
     ("inspect", "--json", "--report", "sarif=-"), ("inspect", "-o", "-", "--report", "-"),
     ("inspect", "--json", "--github"), ("merge", "-o", "-", "--github"),
     ("refine", "-o", "r", "--report", "-", "--report", "junit=-")],
    ids=" ".join,
)  # fmt: skip
def test_stdout_takes_one(
    work: Path, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    result = clair(args[0], "clients", *args[1:])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "standard output takes one" in result.stderr and outputs(work) == set()


@pytest.mark.parametrize("output", [".", "clients"])
def test_a_wrong_output_is_told_beside_reports(work: Path, output: str) -> None:
    for more in ([], FEW):
        assert clair("merge", "clients", "-o", output, *more).exit_code == 2
    assert outputs(work) == set()


# Python


@pytest.mark.parametrize(
    "given",
    [{"json": "r.json", "junit": "j.xml"}, ["r.json", "junit=j.xml"],
     (Path("r.json"), "JUnit=j.xml")],
)  # fmt: skip
def test_reports_from_python(work: Path, given: Any) -> None:
    result = clair_cli.merge("clients", report=given)
    assert result.report_path == "r.json" and outputs(work) == {"r.json", "j.xml"}


def test_a_path_is_json_whatever_its_name() -> None:
    def named(given: Any) -> list[tuple[str, str]]:
        settings = make_settings("merge", "clients", None, {"report": given})
        return [(one.format, one.path.as_posix()) for one in settings.report]

    assert named(Path("junit=j.xml")) == named("./junit=j.xml") == [("json", "junit=j.xml")]
    assert named("a/b=c.json") == [("json", "a/b=c.json")]
    assert named("SARIF=a=b") == [("sarif", "a=b")]
    assert named(None) == named(()) == named([]) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [("pdf=x", "can't be written as 'pdf', only as json, html, markdown"), ("", "empty path"),
     ({"json": ""}, "the path is empty"), ({"x": "y"}, "can't be written as 'x'"),
     (["a", "b"], "two files for json"), (3, r"expected \[FORMAT=\]PATH"),
     ({"json": 3}, "expected"), ({3: "x"}, "expected"), ("-", "report is '-'"),
     ({"junit": "-"}, "report is 'junit=-'"),
     ({"junit": "m.report.json"}, "the JSON report and --report junit= name the same")],
)  # fmt: skip
def test_wrong_reports_are_usage_errors(work: Path, given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        clair_cli.merge("clients", OUT, report=given)
    assert outputs(work) == set()


def test_a_form_that_is_not_installed_is_told_before_any_work(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "html", replace(FORMATS["html"], needs="no_such"))
    for report in ("html=r.html", "html=-"):
        result = clair("merge", "clients", "-o", OUT,
                       "--report", report)  # fmt: skip
        assert result.exit_code == 2 and "pip install 'clair-cli[html]'" in result.stderr
    assert outputs(work) == set()


def test_the_help_names_every_form() -> None:
    for command in ("merge", "inspect", "refine"):
        text = clair(command, "--help").stdout
        assert all(f"{form}=" in text for form in REPORT_FORMATS if form != "json")


# GitHub Actions


@pytest.fixture
def summary(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = work.parent / f"{work.name}-summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


@pytest.mark.parametrize(
    ("command", "code"),
    [(("merge", "-o", OUT), 0), (("refine", "-o", "r"), 0), (("inspect",), 3),
     (("merge", "-o", OUT, "--fail-on", "1"), 3)],
)  # fmt: skip
def test_github(work: Path, summary: Path, command: tuple[str, ...], code: int) -> None:
    summary.write_bytes(b"before\n")
    first, *others = command
    result = clair(first, "clients", *others, "--github", "--report", "json=r.json")
    assert result.exit_code == code
    last = result.stdout.splitlines()[-1]
    assert last.startswith(
        f"::{'error' if code else 'warning'} title=clair%3A odd%3A contaminated::"
    )
    text = FORMATS["markdown"].render(clair_cli.load_report("r.json"), "r.json")
    assert summary.read_bytes() == b"before\n" + text


def test_github_elsewhere_is_a_usage_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", str(work), str(work / "no" / "summary.md")):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", value)
        result = clair("merge", "clients", "-o", OUT, "--github")
        assert result.exit_code == 2 and "GITHUB_STEP_SUMMARY" in result.stderr
        assert outputs(work) == set()


@pytest.mark.parametrize(("before", "added"), [(2**20 - 16_001, True), (2**20 - 16_000, False)])
def test_a_summary_stays_below_githubs_limit(
    work: Path, summary: Path, before: int, added: bool
) -> None:
    summary.write_bytes(b"x" * before)
    result = clair("merge", "clients", "-o", OUT, "--github")
    assert result.exit_code == 0
    assert (summary.stat().st_size > before) == added and summary.stat().st_size < 2**20
    assert ("the job summary is full" in result.stderr) != added
