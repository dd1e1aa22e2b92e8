"""`clair plot`: what it writes, what it leaves alone, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.testing

from clair_cli import extras
from clair_cli.cli.app import app
from clair_cli.plot import figures
from clair_cli.report.encode import report_json
from clair_cli.report.model import Report
from tests.fake_report import fake_report

DRAWN = {"map.svg": b"<svg/>", "map.png": b"png"}


def run(*args: object) -> Any:
    return typer.testing.CliRunner().invoke(
        app, [str(arg) for arg in args], catch_exceptions=False, prog_name="clair"
    )


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A report; drawing it takes no time."""

    def drawn(report: Report) -> dict[str, bytes]:
        assert report == fake_report()
        return DRAWN

    monkeypatch.setattr(figures, "render", drawn)
    path = tmp_path / "r.json"
    path.write_text(report_json(fake_report()), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_figures_of_a_report(given: Path, tmp_path: Path) -> None:
    result = run("plot", given, "-o", tmp_path / "figures")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 picture, each as svg and png, in " in result.stderr
    assert files(tmp_path / "figures") == DRAWN


def test_a_folder_keeps_its_other_files(given: Path, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "mine.txt").write_bytes(b"mine")
    (folder / "map.svg").write_bytes(b"old")
    before = files(folder)
    assert run("plot", given, "-o", folder).exit_code == 6
    assert files(folder) == before
    assert run("plot", given, "-o", folder, "--force").exit_code == 0
    assert files(folder) == {"mine.txt": b"mine", **DRAWN}


def test_a_file_is_no_folder(given: Path, tmp_path: Path) -> None:
    result = run("plot", given, "-o", given)
    assert result.exit_code == 6
    assert "is no folder" in result.stderr


def test_without_the_extra_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = run("plot", tmp_path / "absent.json", "-o", tmp_path / "figures")
    assert result.exit_code == 2
    assert "pip install 'clair-cli[plot]'" in result.stderr


def test_a_report_without_data_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "render", lambda report: {})
    (tmp_path / "r.json").write_text(report_json(fake_report()), encoding="utf-8")
    result = run("plot", tmp_path / "r.json", "-o", tmp_path / "figures")
    assert result.exit_code == 2
    assert "nothing to draw" in result.stderr
    assert not (tmp_path / "figures").exists()
