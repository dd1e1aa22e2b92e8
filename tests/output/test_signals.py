"""Signals during publishing: they act between two steps, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clair_cli.output import draft, publish
from clair_cli.output.publish import Output
from clair_cli.output.signals import held_signals
from tests.cohorts import snapshot


class Stop(BaseException):
    pass


@pytest.fixture
def raising() -> Iterator[None]:
    """SIGTERM raises `Stop`."""

    def stop(*_: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGTERM, stop)
    yield
    assert signal.getsignal(signal.SIGTERM) is stop, "the caller's handler was not put back"
    signal.signal(signal.SIGTERM, before)


def outputs(folder: Path, text: bytes) -> list[Output]:
    files = {"adapter_model.safetensors": text, "adapter_config.json": text}
    return [Output(folder / "r.json", text, True), Output(folder / "m", files, True)]


STEPS = [
    (os, "write"), (os, "fsync"), (os, "mkdir"), (draft, "read_into"), (publish, "swap"),
    (publish._DiskJob, "clean_up"), (publish.shutil, "rmtree"), (publish, "_sync_folder"),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_signal_at_every_step_leaves_all_old_or_all_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raising: None,
    where: Any, name: str, nth: int, after: bool,
) -> None:  # fmt: skip
    publish.publish(outputs(tmp_path, b"old"))
    real, calls = getattr(where, name), []

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == nth and not after:
            signal.raise_signal(signal.SIGTERM)
        try:
            return real(*args, **kwargs)
        finally:
            if len(calls) == nth and after:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(where, name, step)
    if name == "rmtree" and nth == 2:
        publish.publish(outputs(tmp_path, b"new"))  # one folder only
        return
    with pytest.raises(Stop) as caught:
        publish.publish(outputs(tmp_path, b"new"))
    monkeypatch.undo()
    placed = getattr(caught.value, "published", False)
    assert set(snapshot(tmp_path).values()) == {b"new" if placed else b"old"}
    assert sorted(os.listdir(tmp_path)) == ["m", "r.json"]
    assert placed == (name in ("swap", "clean_up", "rmtree")) or name == "_sync_folder"


def test_a_handler_that_returns_does_not_stop_it(tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        publish.publish(
            outputs(tmp_path, b"new"), between=lambda: signal.raise_signal(signal.SIGTERM)
        )
        with held_signals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert len(seen) == 1
        assert len(seen) == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(snapshot(tmp_path).values()) == {b"new"}


def test_all_handlers_are_put_back_although_one_raises(
    monkeypatch: pytest.MonkeyPatch, raising: None
) -> None:
    """A signal may come while they are put back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    real = signal.signal

    def put(number: int, handler: Any) -> Any:
        found = real(number, handler)
        if number == signal.SIGTERM and handler is before[signal.SIGTERM]:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(signal, "signal", put)
    with pytest.raises(Stop), held_signals():
        pass
    assert {number: signal.getsignal(number) for number in before} == before


def test_ignored_signals_stay_ignored_and_threads_hold_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    thread = threading.Thread(target=publish.publish, args=(outputs(tmp_path, b"x"),))
    thread.start()
    thread.join()
    assert set(snapshot(tmp_path).values()) == {b"x"}


def test_between_can_be_interrupted_at_once(tmp_path: Path, raising: None) -> None:
    steps = []

    def slow() -> None:
        steps.append(1)
        signal.raise_signal(signal.SIGTERM)
        steps.append(2)

    with pytest.raises(Stop):
        publish.publish(outputs(tmp_path, b"new"), between=slow)
    assert steps == [1]
    assert os.listdir(tmp_path) == []
