"""`clair explain`: widths, hostile names, bars in ASCII, unknown clients."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from clair_cli.cli.explained import explained
from clair_cli.cli.render import View
from clair_cli.report.encode import report_json
from clair_cli.report.model import ModuleScores, Reason, Report
from clair_cli.words.outcomes import OUTCOMES
from clair_cli.words.reasons import REASONS
from tests.fake_report import MODULES, all_benign, fake_report, renamed, undetermined
from tests.pages import run_clair

REPORT = fake_report()


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "r.json"
    file.write_text(report_json(REPORT), encoding="utf-8")
    return str(file)


def with_shares(first: float, second: float) -> Report:
    """The fake report, in whose two layers amber has these shares of 0.31."""
    modules = {
        name: ModuleScores(1.0, share * 0.31, 0.001, 8, 1.0)
        for name, share in zip(MODULES, (first, second), strict=True)
    }
    return replace(REPORT, clients=(replace(REPORT.clients[0], modules=modules),
                                    *REPORT.clients[1:]))  # fmt: skip


def bars(report: Report, *, unicode: bool = False) -> list[str]:
    text = explained(report.clients[0], report, View(unicode=unicode))
    below = text.split("layer by layer (layers):")[1].split("\n\n")[0]
    return below.splitlines()[2:]


def test_a_bar_for_each_layer() -> None:
    assert bars(with_shares(0.2, 1.0)) == [
        "  0    20 %  ######        |",
        "  1   100 %  ##############################",
    ]


def test_what_is_against_the_others_is_drawn_otherwise() -> None:
    assert bars(with_shares(-0.2, 0.0)) == [
        "  0   -20 %  ------        |",
        "  1     0 %                |  by chance?",
    ]


@pytest.mark.parametrize("share", [1.5, 2.0, 1e9])
def test_a_bar_has_an_end(share: float) -> None:
    assert bars(with_shares(share, 0.0), unicode=True)[0].count("\u2588") == 45


@pytest.mark.parametrize("code", [*REASONS, *OUTCOMES])
def test_every_reason_fits_the_terminal(code: str) -> None:
    client = replace(with_shares(-0.7, 1e9).clients[0], reasons=(Reason(code, "t " * 60),))
    report = replace(undetermined(), merged=REPORT.merged) if code in OUTCOMES else REPORT
    report = replace(report, modules=REPORT.modules)
    for width, unicode in itertools.product((20, 40, 60, 80, 120), (True, False)):
        text = explained(client, report, View(width, False, unicode))
        assert max(cell_len(line) for line in text.splitlines()) <= width, (width, unicode)
        assert unicode or text.isascii(), width
        assert not any(bad in text for bad in ("-0 ", "None", "nan", "+/-", "{", "}"))


@pytest.mark.parametrize("report", [REPORT, all_benign(), undetermined()], ids=lambda r: r.command)
def test_everybody_can_be_explained(report: Report) -> None:
    for client in report.clients:
        text = explained(client, report, View(width=80))
        assert text.startswith(f"{client.name}: {client.verdict}")
        assert text.endswith("\n") and not text.endswith("\n\n")


def test_the_command_reads_a_report(path: str) -> None:
    result = run_clair("explain", "amber", "--report", path)
    assert result.exit_code == 0
    assert result.stdout.startswith("amber: contaminated, not in the merge\n\nwhy\n")
    assert "$ clair merge clients -o merged.safetensors --force\n" in result.stdout


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ambr", "did you mean 'amber'?"), ("qqqq", "its clients are 'amber', 'bob', "), ("", "its")],
)
def test_an_unknown_client_is_a_usage_error_with_a_suggestion(
    path: str, name: str, hint: str
) -> None:
    result = run_clair("explain", name, "--report", path)
    assert result.exit_code == 2
    assert f"the report has no client '{name}'" in result.stderr
    assert f"  fix       {hint}" in result.stderr


def test_what_is_no_report_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}", encoding="utf-8")
    for name in ("r.json", "none.json"):
        assert run_clair("explain", "amber", "--report", str(tmp_path / name)).exit_code == 2
    assert run_clair("explain", "amber").exit_code == 2


HOSTILE = ("</script><img onerror=x>", "::error::x", "a|b", "=cmd()", "a\nb\r\x1b[2J\u202e", "{x}")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("view", [View(), View(width=80, colour=True)], ids=["plain", "terminal"])
def test_hostile_names_are_harmless(name: str, view: View) -> None:
    report = renamed(REPORT, {"amber": name, "bob": name + "2"})
    names = tuple({"amber": name, "bob": name + "2"}.get(n, n) for n in report.cohort.names)
    groups = tuple(
        replace(g, members=tuple(sorted({"bob": name + "2"}.get(n, n) for n in g.members)))
        for g in report.cohort.groups
    )
    report = replace(report, cohort=replace(report.cohort, names=names, groups=groups))
    modules = {f"m.{k}{name}": s for k, s in enumerate(report.clients[0].modules.values())}
    reports = tuple(replace(m, name=n) for m, n in zip(report.modules, modules, strict=True))
    first = replace(report.clients[0], modules=modules)
    report = replace(report, modules=reports, clients=(first, *report.clients[1:]))
    assert "layer by layer (m):" in explained(first, report, view)
    for client in report.clients:
        text = explained(client, report, view)
        allowed = "\n\x1b" if view.colour else "\n"
        assert all(char.isprintable() or char in allowed for char in text)
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_names_that_are_not_unicode_are_found_as_they_are_spelt(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(report_json(renamed(REPORT, {"amber": "caf\udce9"})), encoding="utf-8")
    report = json_cohort_names(file)
    for given in ("caf\udce9", "caf\\xe9"):
        result = run_clair("explain", given, "--report", str(report))
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("caf\\xe9: contaminated")


def json_cohort_names(file: Path) -> Path:
    """The report with its cohort's names as its clients have them."""
    text = file.read_text(encoding="utf-8").replace('"amber"', '"caf\\\\xe9"')
    file.write_text(text, encoding="utf-8")
    return file


def test_torch_is_never_imported(path: str) -> None:
    code = (
        "import sys\nfrom clair_cli.cli.app import app\n"
        f"try: app(['explain', 'amber', '--report', {path!r}])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'scipy', 'safetensors'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("amber: contaminated")
