"""Large tables are files without a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from clair_cli.engine import scratch as module
from clair_cli.engine.scratch import scratch


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module, "LARGE", 8 * 100)
    return tmp_path


@pytest.mark.parametrize(("rows", "is_file"), [(9, False), (10, True)])
def test_a_table_is_in_a_file_from_a_size_on(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rows: int, is_file: bool
) -> None:
    made: list[str] = []
    real = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda p, **how: made.append(p) or real(p, **how))
    found = scratch((rows, 10), torch.float64)
    found.fill_(7.0)
    assert found.shape == (rows, 10) and float(found.sum()) == 70.0 * rows
    assert bool(made) == is_file and list(folder.iterdir()) == []


def test_a_full_disk_is_too_little_memory(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(MemoryError, match=r"no room for 0\.0 GB .*No space left.*TMPDIR"):
        scratch((10, 10), torch.float64)
    assert list(folder.iterdir()) == []
