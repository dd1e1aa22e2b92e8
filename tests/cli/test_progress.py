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
    assert seen.timings("a GPU").splitlines() == [
        "where the time went:",
        "  starting           3.00 s    75 %",
        "  reading            1.00 s    25 %",
        "  all                4.00 s",
        "  memory: about 650 MB to work with (an estimate), 1.2 GB used at its highest, torch "
        "included",
        "  computed on a GPU",
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


def test_a_line_every_ten_seconds_where_no_bar_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streams of tests are no terminals."""
    with watch.watched(quiet=False) as seen:
        for later, done in ((9.99, 1), (0.01, 2), (9.99, 3), (0.02, 4), (30.0, 1_000), (1.0, 6)):
            clock.now += later
            seen("read\x1bing", done, 1200)
    assert capsys.readouterr().err == (
        "progress: read\\x1bing 2 of 1,200, 10 s so far\n"
        "progress: read\\x1bing 4 of 1,200, 20 s so far\n"
        "progress: read\\x1bing 1,000 of 1,200, 50 s so far\n"
    )


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=str)
def test_a_line_or_a_bar_at_a_terminal(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    env: dict[str, str],
) -> None:
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(watch, "is_terminal", lambda _: True)
    with watch.watched(quiet=False) as seen:
        clock.now += 10
        seen("reading", 1, 3)
    found = capsys.readouterr().err
    assert (found == "progress: reading 1 of 3, 10 s so far\n") == bool(env)


def test_quiet_means_no_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with watch.watched(quiet=True) as seen:
        clock.now += 20
        seen("reading", 1, 3)
    assert capsys.readouterr().err == ""
