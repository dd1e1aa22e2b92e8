"""Reports and adapters stay together: no report of an adapter that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli.errors import ClairError, OutputError
from clair_cli.output import publish
from clair_cli.workflow import destination
from tests import cohorts
from tests.cohorts import texts


def saved(tmp_path: Path, n_clients: int) -> Path:
    folder = tmp_path / "clients"
    cohorts.save(folder, cohorts.honest(n_clients))
    return folder


def fail_at(monkeypatch: pytest.MonkeyPatch, stage: str, name: str) -> None:
    """Let the disk be full when the output of that name is written, or put in place."""
    real = getattr(publish._DiskJob, stage)

    def full(job: Any, *args: Any) -> None:
        if job.target.name == name:
            raise OSError(28, "No space left on device")
        real(job, *args)

    monkeypatch.setattr(publish._DiskJob, stage, full)


@pytest.mark.parametrize("stage", ["prepare", "place"])
def test_a_failed_adapter_takes_its_report_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    clients, merged = saved(tmp_path, 5), tmp_path / "m.safetensors"
    fail_at(monkeypatch, stage, "m.safetensors")
    with pytest.raises(OutputError, match="No space left"):
        clair_cli.merge(clients, merged)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clients"]

    (tmp_path / "m.report.json").write_text("an older report")
    with pytest.raises(OutputError, match="No space left"):
        clair_cli.merge(clients, merged, force=True)
    assert (tmp_path / "m.report.json").read_text() == "an older report"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clients", "m.report.json"]


@pytest.mark.parametrize("name", ["m.safetensors", "m"])
def test_a_report_without_an_adapter_does_not_block_the_remedy(tmp_path: Path, name: str) -> None:
    clients, merged = saved(tmp_path, 2), tmp_path / name
    beside = tmp_path / "m.report.json"
    assert clair_cli.merge(clients, merged).report.exit_code == 5
    assert json.loads(beside.read_text())["merged"] is None
    result = clair_cli.merge(clients, merged, allow_undetermined=True)
    assert result.report.exit_code == 0
    assert any("without a verdict" in warning for warning in texts(result.report.warnings))
    report: dict[str, Any] = json.loads(Path(result.report_path or "").read_text())
    assert report["merged"]["sha256"]
    assert beside.exists() == (name == "m.safetensors")
    with pytest.raises(ClairError, match=r"exists|not empty"):  # an adapter's is not replaced
        clair_cli.merge(clients, merged, allow_undetermined=True)


def test_another_file_in_the_reports_place_is_kept(tmp_path: Path) -> None:
    clients = saved(tmp_path, 2)
    (tmp_path / "m.report.json").write_text('{"merged": null}')
    with pytest.raises(OutputError, match="exists"):
        clair_cli.merge(clients, tmp_path / "m.safetensors")
    assert (tmp_path / "m.report.json").read_text() == '{"merged": null}'


def test_an_asked_for_report_without_an_adapter_is_replaced_but_no_inspection(
    tmp_path: Path,
) -> None:
    clients, report = saved(tmp_path, 2), tmp_path / "r.json"
    for name in ("a.safetensors", "b"):
        assert clair_cli.merge(clients, tmp_path / name, report=report).report.exit_code == 5
    clair_cli.merge(clients, tmp_path / "b", report=report, allow_undetermined=True)
    assert json.loads(report.read_text())["merged"]["path"].endswith("b")
    report.unlink()

    clair_cli.inspect(clients, report)
    before = report.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        clair_cli.merge(clients, tmp_path / "c.safetensors", report=report)
    assert report.read_bytes() == before


@pytest.mark.parametrize("name", ["m.safetensors", "m"])
def test_the_adapter_is_on_its_way_to_the_disk_before_it_is_whole(
    tmp_path: Path, name: str
) -> None:
    """Whatever happens then: nothing of it is left."""
    folder = cohorts.save(tmp_path / "clients", cohorts.honest(4))

    def seen(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("writing", total - 1):
            found.extend(p for p in tmp_path.iterdir() if p.suffix == ".tmp")
            if fails:
                raise KeyboardInterrupt

    for fails in (True, False):
        found: list[Path] = []
        if fails:
            with pytest.raises(KeyboardInterrupt):
                clair_cli.merge(folder, tmp_path / name, progress=seen)
            assert [p.name for p in tmp_path.iterdir()] == ["clients"]
        else:
            clair_cli.merge(folder, tmp_path / name, progress=seen)
        assert len(found) == 1
    assert not any(p.suffix == ".tmp" for p in tmp_path.rglob("*"))


def test_the_command_line_does_not_hold_what_it_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is there to look at it; from Python, or where nothing is written, it is the result."""
    clients = saved(tmp_path, 4)
    result = clair_cli.merge(clients, tmp_path / "a.safetensors")
    assert result.tensors
    refined = clair_cli.refine(clients, tmp_path / "refined")
    assert all(tensors for tensors, _ in refined.adapters.values())
    monkeypatch.setattr(destination, "is_ours", lambda: True)
    assert clair_cli.merge(clients).tensors
    assert clair_cli.merge(clients, tmp_path / "b.safetensors").tensors == {}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    refined = clair_cli.refine(clients, tmp_path / "again")
    assert refined.adapters and not any(tensors for tensors, _ in refined.adapters.values())
    assert weights(tmp_path / "refined") == weights(tmp_path / "again")


def weights(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_refined_adapters_are_written_while_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at one time as there may be, and nothing is left of them where the run ends early."""
    clients = saved(tmp_path, 4)
    drafts: list[int] = []

    def seen(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            drafts.append(sum(p.is_file() and p.suffix == ".tmp" for p in tmp_path.iterdir()))
            if done == total and fails:
                raise KeyboardInterrupt

    for most in (64, 2):
        monkeypatch.setattr(destination, "_MOST", most)
        drafts.clear()
        fails = False
        clair_cli.refine(clients, tmp_path / str(most), progress=seen)
        assert max(drafts) == min(most, 4)
        fails = True
        with pytest.raises(KeyboardInterrupt):
            clair_cli.refine(clients, tmp_path / "other", progress=seen)
        assert not (tmp_path / "other").exists()
        assert not any(p.suffix == ".tmp" for p in tmp_path.rglob("*"))
    assert len(weights(tmp_path / "64")) == 4
    assert weights(tmp_path / "64") == weights(tmp_path / "2")
