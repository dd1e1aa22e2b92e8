"""How far a run is, for whoever watches, and where its time went."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clair_cli.cli.streams import is_terminal, takes_ansi, write_err
from clair_cli.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

FIRST = "starting"

# Seconds between two drawings of the bar within a stage.
_REDRAW = 0.1
# Seconds between two lines where no bar can be drawn.
_LINES = 10.0


class Watch:
    """The workflow's progress callback: keeps the time of each stage, and moves the bar.

    A stage lasts until the next one begins.

    Args:
        bar: drawn when progress is reported; it has no thread of its own.
        lines: write a plain line when progress is reported, at most one every ten seconds.
    """

    def __init__(self, bar: Progress | None = None, *, lines: bool = False) -> None:
        self._bar = bar
        self._lines = lines
        self._drawn = 0.0
        self._task: Any = None if bar is None else bar.add_task(FIRST, total=None)
        self._begun: list[tuple[str, float]] = [(FIRST, time.perf_counter())]
        self._said = self._begun[0][1]
        self.memory = 0  # bytes, an estimate; 0 as long as there is none

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "memory":
            self.memory = done
            return
        new = stage != self._begun[-1][0]
        if new:
            self._begun.append((stage, time.perf_counter()))
        if self._bar is not None:
            self._draw(self._bar, new, stage, done, total)
        if self._lines:
            self._say(stage, done, total)

    def _say(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._said >= _LINES:
            self._said = now
            seconds = now - self._begun[0][1]
            write_err(
                f"progress: {printable(stage)} {done:,} of {total:,}, {seconds:.0f} s so far\n"
            )

    def _draw(self, bar: Progress, new: bool, stage: str, done: int, total: int) -> None:
        needs = f", {size(self.memory)} of memory" if self.memory else ""
        text, now = printable(stage) + needs, time.perf_counter()
        if new:  # rate and time left are those of one stage
            bar.reset(self._task, description=text, completed=done, total=total)  # it draws too
            self._drawn = now
            return
        bar.update(self._task, description=text, completed=done, total=total)
        if now - self._drawn >= _REDRAW:
            self._drawn = now
            bar.refresh()

    def seconds(self) -> dict[str, float]:
        """Wall-clock time by stage until now, in order of first occurrence."""
        ends = [*(start for _, start in self._begun[1:]), time.perf_counter()]
        found: dict[str, float] = {}
        for (stage, start), end in zip(self._begun, ends, strict=True):
            found[stage] = found.get(stage, 0.0) + end - start
        return found

    def timings(self, where: str) -> str:
        """A line per stage, the memory, and where the work ran: what `--timings` prints."""
        seconds = self.seconds()
        total = sum(seconds.values())
        lines = [
            f"  {stage:<14} {value:8.2f} s {100 * value / total if total else 0:5.0f} %"
            for stage, value in seconds.items()
        ]
        lines.append(f"  {'all':<14} {total:8.2f} s")
        peak = _peak_memory()
        used = f", {size(peak)} used at its highest, torch included" if peak else ""
        guess = f"about {size(self.memory)} to work with (an estimate)" if self.memory else "small"
        lines += [f"  memory: {guess}{used}", f"  computed on {where}"]
        return "\n".join(["where the time went:", *lines]) + "\n"


def size(count: int) -> str:
    """A number of bytes in words.

    >>> size(3_456_000_000), size(12_300_000)
    ('3.5 GB', '12 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"


@contextmanager
def watched(*, quiet: bool, timings: Callable[[], str] | None = None) -> Iterator[Watch]:
    """Yield a callback that draws a transient bar on a terminal, and writes lines elsewhere.

    Args:
        timings: print where the time went when all is done, and where the work ran, as this says.
    """
    if quiet or not is_terminal(sys.stderr) or not takes_ansi():
        watch = Watch(lines=not quiet)
        yield watch
    else:
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(
            *_columns(), console=Console(stderr=True), transient=True,
            auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        with bar:
            watch = Watch(bar)
            yield watch
    if timings is not None:
        write_err(watch.timings(timings()))


def _columns() -> list[str | ProgressColumn]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s")

    description = TextColumn("{task.description}", markup=False)
    return [description, BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()]


def _peak_memory() -> int:
    """Largest resident size of this process so far in bytes; 0 where that can't be known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
