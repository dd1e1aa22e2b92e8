"""`clair report`: what it writes, and what it refuses before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from clair_cli import extras
from clair_cli.cli.app import app
from clair_cli.html.page import render
from clair_cli.report.encode import report_json
from tests.fake_report import fake_report


def run(*args: object) -> Any:
    return typer.testing.CliRunner().invoke(
        app, [str(arg) for arg in args], catch_exceptions=False, prog_name="clair"
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "r.json"
    path.write_text(report_json(fake_report()), encoding="utf-8")
    return path


def test_the_page_of_a_report(given: Path, tmp_path: Path) -> None:
    result = run("report", given, "-o", tmp_path / "r.html")
    assert result.exit_code == 0
    assert (tmp_path / "r.html").read_bytes() == render(fake_report(), report_path=str(given))


def test_it_goes_to_standard_output(given: Path) -> None:
    result = run("report", given, "-o", "-")
    assert result.exit_code == 0
    assert result.stdout_bytes == render(fake_report(), report_path=str(given))


def test_it_replaces_a_page_with_force_and_never_the_report(given: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("old", encoding="utf-8")
    assert run("report", given, "-o", tmp_path / "r.html").exit_code == 6
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == "old"
    assert run("report", given, "-o", given, "--force").exit_code == 2
    assert run("report", given, "-o", tmp_path / "r.html", "--force").exit_code == 0


def test_without_the_extra_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = run("report", tmp_path / "absent.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "pip install 'clair-cli[html]'" in result.stderr


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    result = run("report", tmp_path / "x.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "is no report of clair" in result.stderr
    assert not (tmp_path / "r.html").exists()


def test_it_imports_no_torch(given: Path, tmp_path: Path) -> None:
    program = (
        "import sys, clair_cli.cli.app as app\n"
        "try: app.main()\n"
        "finally: print(sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & sys.modules.keys()))\n"
    )
    arguments = ["report", str(given), "-o", str(tmp_path / "r.html")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60,
        env=dict(os.environ), check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
