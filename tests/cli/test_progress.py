"""Stages, their times and the memory, as the workflow's progress tells them."""

from __future__ import annotations

import pytest

from clair_cli.cli import progress as watch
from clair_cli.cli import streams as terminal
from clair_cli.cli.progress import Watch


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(watch, "time", found)
    return found


def test_a_stage_lasts_until_the_next_begins(clock: Clock) -> None:
    seen = Watch()
    for later, stage, done in (
        (2.0, "reading", 0),
        (1.0, "reading", 3),
        (0.5, "comparing", 0),
        (4.0, "reading", 0),  # a client changed: the round begins again
        (1.5, "writing", 0),
    ):
        clock.now += later
        seen(stage, done, 3)
    clock.now += 0.25
    assert seen.seconds() == {
        "starting": 2.0, "reading": 3.0, "comparing": 4.0, "writing": 0.25,
    }  # fmt: skip


def test_timings_say_the_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_peak_memory", lambda: 1_234_567_890)
    seen = Watch()
    clock.now += 3.0
    seen("memory", 650_000_000, 0)
    seen("reading", 0, 1)
    clock.now += 1.0
    assert seen.timings().splitlines() == [
        "where the time went:",
        "  starting           3.00 s    75 %",
        "  reading            1.00 s    25 %",
        "  all                4.00 s",
        "  memory: about 650 MB to work with (an estimate), 1.2 GB used at its highest, torch "
        "included",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_what_ends_at_once_takes_the_bar_off_and_shows_the_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(terminal, "is_terminal", lambda _: shown)
    terminal.restore_line()
    assert capsys.readouterr().err == ("\r\x1b[K\x1b[?25h" if shown else "")
