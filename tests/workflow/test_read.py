"""The clients' files are read on threads while the calling one imports torch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cohort.model import Cohort
from clair_cli.errors import UsageError
from clair_cli.settings import make_settings
from clair_cli.workflow import read
from clair_cli.workflow.read import read_cohort
from tests import cohorts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cohorts.save(tmp_path / "clients", cohorts.honest(5))


@pytest.mark.parametrize("threads", [1, 3])
def test_files_are_read_while_other_work_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """The first file is not through before the other work has begun, which waits for it."""
    begun, first, names = threading.Event(), threading.Event(), []
    real = read.load_client

    def loading(*args: Any, **options: Any) -> object:
        names.append(threading.current_thread())
        assert begun.wait(20)
        first.set()
        return real(*args, **options)

    def work() -> None:
        begun.set()
        assert first.wait(20)

    monkeypatch.setattr(read, "load_client", loading)
    settings = make_settings("inspect", folder, None, {"threads": threads})
    found = read_cohort(settings, work)
    assert isinstance(found, Cohort)
    assert [a.name for a in found.adapters] == [f"c{k}" for k in range(5)]
    assert threading.main_thread() not in names and len(set(names)) <= threads


def test_an_error_of_the_other_work_is_raised(folder: Path) -> None:
    def work() -> None:
        raise ImportError("no torch")

    with pytest.raises(ImportError, match="no torch"):
        read_cohort(make_settings("inspect", folder, None, {}), work)


def test_what_is_told_comes_in_order(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = {"progress": lambda *args: told.append(args)}
    read_cohort(make_settings("inspect", folder, None, options))
    assert told == [("reading", done, 5) for done in range(6)]


@pytest.mark.parametrize("alpha", ["x", float("inf")])
def test_a_wrong_alpha_is_refused_although_nobody_needs_it(folder: Path, alpha: Any) -> None:
    with pytest.raises(UsageError, match="assume_alpha"):
        read_cohort(make_settings("inspect", folder, None, {"assume_alpha": alpha}))
