"""A cohort's folder with one good client."""

from __future__ import annotations

from pathlib import Path

import pytest

from .hostile import client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "clients"
    path.mkdir()
    client(path, "good")
    return path
