"""What the detector is to reach on pools of clients, and what it does.

One line for each target: what is counted, the number asked for, what was measured, whether that
reaches it. A line that no cohort speaks to is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.pools.score import OFF, Result

# Backdoor success above that of the benign mean that a merge may have.
WORKS_MORE = 0.10
Measure = Callable[[Sequence[Result]], tuple[int, int]]


@dataclass(frozen=True)
class Target:
    """One number to reach.

    Attributes:
        rows: of the cohorts that count.
        text: what is counted.
        measure: how many, and of how many.
        bound: the share asked for; at_most: whether it is the most, else the least.
    """

    rows: tuple[str, ...]
    text: str
    measure: Measure
    bound: float
    at_most: bool = False

    def line(self, results: Sequence[Result]) -> str | None:
        """The line of the table; None if nothing is there to count."""
        count, total = self.measure([one for one in results if one.row in self.rows])
        if not total:
            return None
        share = count / total
        reached = share <= self.bound if self.at_most else share >= self.bound
        asked = f"{'<=' if self.at_most else '>='} {100 * self.bound:g} %"
        found = f"{count} of {total}"
        return (
            f"{self.text:64} {asked:>9} {found:>14} {100 * share:6.1f} %  {'' if reached else 'no'}"
        )


def _clients(side: str, *verdicts: str) -> Measure:
    """Clients with one of these verdicts, of all on a side ("bad", "honest")."""

    def measure(results: Sequence[Result]) -> tuple[int, int]:
        each = [getattr(one, side) for one in results]
        found = sum(one.get(verdict, 0) for one in each for verdict in verdicts)
        return found, sum(sum(one.values()) for one in each)

    return measure


def _cohorts(
    is_so: Callable[[Result], bool], counts: Callable[[Result], bool] = lambda _: True
) -> Measure:
    """Cohorts of which something is so, of those that count."""

    def measure(results: Sequence[Result]) -> tuple[int, int]:
        each = [one for one in results if counts(one)]
        return sum(map(is_so, each)), len(each)

    return measure


def _within(distance: float) -> Measure:
    """Merges no further than this from the mean of the benign, which without bad clients is the
    plain mean. A cohort without an adapter is no such merge."""
    return _cohorts(lambda one: one.errors.get("clair", float("inf")) <= distance)


def _is_judged(one: Result) -> bool:
    return one.outcome == "judged"


def backdoor_is_told(one: Result) -> bool:
    """Whether the backdoor works hardly more often in the merge than in the benign mean, or every
    bad client is named: `contaminated`, `minority`, `suspicious`, or its verdict is open."""
    if one.unnamed == 0:
        return True
    return one.task["clair"]["backdoor"] <= one.task["benign"]["backdoor"] + WORKS_MORE


def _has_backdoor(one: Result) -> bool:
    return _is_judged(one) and one.kinds == "backdoor" and {"benign", "clair"} <= set(one.task)


TARGETS = (
    Target(("several",), "two bad or more alike: bad clients found",
           _clients("bad", "contaminated", "minority"), 0.90),
    Target(("several",), "  silent cohorts", _cohorts(lambda one: one.silent), 0.03, at_most=True),
    Target(("single",), "one bad: silent, of cohorts whose plain mean is far off",
           _cohorts(lambda one: one.silent, lambda one: one.errors["mean"] > OFF), 0.15,
           at_most=True),
    Target(("single", "several"), "backdoors alone: told, or at most 10 points more success",
           _cohorts(backdoor_is_told, _has_backdoor), 0.85),
    Target(("clean",), "nobody bad: contaminated",
           _clients("honest", "contaminated"), 0.005, at_most=True),
    Target(("clean",), "  minority or suspicious",
           _clients("honest", "minority", "suspicious"), 0.02, at_most=True),
    Target(("clean",), "  merge within 1 % of the plain mean", _within(0.01), 0.97),
    Target(("populations",), "two populations: contaminated",
           _clients("honest", "contaminated"), 0.0, at_most=True),
    Target(("populations",), "  merge within 0.15 of the plain mean", _within(0.15), 0.95),
    Target(("recipes",), "mixed recipes: contaminated",
           _clients("honest", "contaminated"), 0.0, at_most=True),
    Target(("recipes",), "  merge within 10 % of the plain mean", _within(0.10), 1.0),
    Target(("trusted-60",), "60 % bad, one trusted: bad clients found",
           _clients("bad", "contaminated", "minority"), 0.90),
    Target(("trusted-60",), "  silent cohorts", _cohorts(lambda one: one.silent), 0.03,
           at_most=True),
    Target(("trusted-80",), "80 % bad, one trusted: silent cohorts",
           _cohorts(lambda one: one.silent), 0.03, at_most=True),
    Target(("trusted-80",), "  bad clients found, or the cohort undetermined",
           _cohorts(lambda one: not _is_judged(one) or one.hits >= 0.8 * sum(one.bad.values())),
           1.0),
    Target(("all-bad",), "everybody bad: undetermined",
           _cohorts(lambda one: not _is_judged(one)), 0.95),
)  # fmt: skip


def target_lines(results: Sequence[Result]) -> Iterator[str]:
    """The table, one line a target."""
    yield f"{'targets':64} {'asked':>9} {'':>14} {'':>8}"
    for target in TARGETS:
        line = target.line(results)
        if line is not None:
            yield line.rstrip()


def decomposition_line(results: Sequence[Result]) -> str:
    """How often the decomposition keeps the judge's set, and how far off the merges are where it
    does and where it does not."""
    parts = []
    for agrees in (True, False):
        some = [one for one in results if one.agrees is agrees and "clair" in one.errors]
        off = sum(one.errors["clair"] > OFF for one in some)
        parts.append(f"{'agrees' if agrees else 'differs'} in {len(some)}, {off} of them far off")
    return "decomposition, in judged cohorts: " + "; ".join(parts)


def warning_line(results: Sequence[Result]) -> str:
    """How many of the judged cohorts have a warning, and of the silent ones."""
    judged = [one for one in results if _is_judged(one)]
    silent = [one for one in judged if one.silent]
    parts = (f"{sum(one.warned for one in some)} of {len(some)}" for some in (judged, silent))
    return "cohorts with a warning: {}; of those that are silent {}".format(*parts)
