"""A merged adapter to a stream: the bytes of the file, and a report only where it was asked for."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

import clair_cli
from clair_cli import OutputError, UsageError
from clair_cli.output import targets
from tests import cohorts


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    return cohorts.save(tmp_path / "clients", {**cohorts.honest(5), "odd": cohorts.unrelated()})


def test_the_stream_gets_the_bytes_of_the_file(clients: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    result = clair_cli.merge(clients, stream)
    assert result.report_path is None
    assert [p.name for p in tmp_path.iterdir()] == ["clients"]
    clair_cli.merge(clients, tmp_path / "m.safetensors")
    assert stream.getvalue() == (tmp_path / "m.safetensors").read_bytes()
    assert result.report.merged is not None
    assert result.report.merged.path == result.report.options["output"] == "-"
    assert result.report.merged.sha256 == hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.mark.parametrize("old", [True, False])
def test_a_stream_that_fails_leaves_no_report(clients: Path, tmp_path: Path, old: bool) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    report = tmp_path / "r.json"
    if old:
        report.write_text("an older report")
    with pytest.raises(OutputError, match="No space left on device"):
        clair_cli.merge(clients, Full(), report=report, force=True)
    assert (report.read_text() if old else report.exists()) == ("an older report" if old else False)


def test_a_stream_that_takes_little_at_a_time_gets_all(clients: Path) -> None:
    class Slow(io.RawIOBase):
        taken = b""

        def write(self, data: Any) -> int:
            self.taken += bytes(data[:100])
            return min(100, len(data))

    slow, whole = Slow(), io.BytesIO()
    clair_cli.merge(clients, slow)  # type: ignore[arg-type]
    clair_cli.merge(clients, whole)
    assert slow.taken == whole.getvalue()


def test_without_an_adapter_nothing_goes_to_the_stream(tmp_path: Path) -> None:
    two = cohorts.save(tmp_path / "clients", cohorts.honest(2))
    stream = io.BytesIO()
    assert clair_cli.merge(two, stream).report.exit_code == 5
    assert clair_cli.merge(two, stream, report=tmp_path / "r.json").report.exit_code == 5
    assert stream.getvalue() == b""
    assert cohorts.read_report(tmp_path / "r.json")["merged"] is None
    for command in (clair_cli.refine, clair_cli.inspect):
        with pytest.raises(UsageError, match="stream"):
            command(two, stream)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["output", "report", "weights", "previous"])
def test_empty_paths_are_refused(clients: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is an empty path"):
        clair_cli.merge(clients, **{name: ""})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="clients is an empty path"):
        clair_cli.merge("")


def test_upper_case_is_one_file_too(clients: Path, tmp_path: Path) -> None:
    result = clair_cli.merge(clients, tmp_path / "M.SAFETENSORS")
    assert result.report_path == (tmp_path / "M.report.json").as_posix()
    assert cohorts.read_dense(tmp_path / "M.SAFETENSORS")


def test_a_disk_too_small_for_any_adapter_is_refused_before_comparing(
    clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = []
    monkeypatch.setattr(targets, "free_bytes", lambda _: 17_000)

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    options: dict[str, Any] = {"rank": 500, "dtype": "float32", "progress": progress}
    for command, name in ((clair_cli.merge, "m.safetensors"), (clair_cli.refine, "r")):
        with pytest.raises(OutputError, match=r"no room for output .* 17,000 are free"):
            command(clients, tmp_path / name, **options)
    assert set(stages) == {"reading", "memory"}
    assert [p.name for p in tmp_path.iterdir()] == ["clients"]
