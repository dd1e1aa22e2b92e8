"""The table of a domain: hits, false flags and errors of the merge, by row and by setting.

A *hit* is a bad client that is ``contaminated`` (column hit) or ``minority`` (column min); a *false
flag* is an honest client that is ``contaminated``; honest clients that are ``minority`` or
``suspicious`` have columns of their own; ``out`` are bad clients that are duplicates or rejected.
*Silent* are cohorts that are judged, with exit code 0, and merged more than 0.2 off. Errors are
medians and largest values over cohorts; clair's over those in which it wrote an adapter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from benchmarks.pools import score
from benchmarks.pools.cohorts import ROWS, Cohort, cohorts_of
from benchmarks.pools.score import Result, Task
from benchmarks.pools.settings import Setting
from benchmarks.pools.targets import decomposition_line, target_lines, warning_line

SEEDS = {"tuning": (0, 1), "held back": (2, 3), "never looked at": (4, 5)}
RULES = ("clair", "mean", "geometric-median", "multi-krum")
HEADER = (
    f"{'':16} {'n':>4} {'undet':>5} {'silent':>6} {'hit':>5}{'min':>4}{'susp':>5}{'out':>4}"
    f" {'bad':>5} {'false':>5}{'min':>4}{'susp':>5} {'honest':>6}"
    f" {'clair':>11} {'mean':>11} {'geomed':>11} {'m-krum':>11}"
)
TASK_HEADER = f"{'':16} {'loss: benign':>12} {'mean':>6} {'clair':>6} {'backdoor: benign':>17}" + (
    f" {'mean':>6} {'clair':>6}"
)


def line(title: str, results: Sequence[Result]) -> str:
    """Counts and errors of some cohorts, as one line of the table."""

    def verdicts(side: str, *names: str) -> int:
        return sum(getattr(one, side).get(name, 0) for one in results for name in names)

    counts = (
        f"{title:16} {len(results):4}"
        f" {sum(one.outcome == 'undetermined' for one in results):5}"
        f" {sum(one.silent for one in results):6}"
        f" {verdicts('bad', 'contaminated'):5}{verdicts('bad', 'minority'):4}"
        f"{verdicts('bad', 'suspicious'):5}{verdicts('bad', 'duplicate', 'rejected'):4}"
        f" {sum(sum(one.bad.values()) for one in results):5}"
        f" {verdicts('honest', 'contaminated'):5}{verdicts('honest', 'minority'):4}"
        f"{verdicts('honest', 'suspicious'):5}"
        f" {sum(sum(one.honest.values()) for one in results):6}"
    )
    errors = ([one.errors[rule] for one in results if rule in one.errors] for rule in RULES)
    return " ".join([counts, *(f"{_spread(values):>11}" for values in errors)])


def task_line(title: str, results: Sequence[Result]) -> str:
    """Mean loss and backdoor success of merged models, as one line; for cohorts with an adapter
    by `clair`, so that all columns are about the same ones."""
    whole = [one.task for one in results if {"benign", "mean", "clair"} <= set(one.task)]
    if not whole:
        return f"{title:16} -"
    loss, backdoor = (
        [sum(one[rule][name] for one in whole) / len(whole) for rule in ("benign", "mean", "clair")]
        for name in ("loss", "backdoor")
    )
    return (
        f"{title:16} {loss[0]:12.3f} {loss[1]:6.3f} {loss[2]:6.3f}"
        f" {backdoor[0]:17.2f} {backdoor[1]:6.2f} {backdoor[2]:6.2f}"
    )


def _spread(values: Sequence[float]) -> str:
    """Median and largest value."""
    return f"{median(values):.2f} {max(values):.2f}" if values else "-"


def tables(results: Sequence[Result], with_task: bool) -> Iterator[str]:
    """The lines of all tables, tuning and held-back seeds apart."""
    for title, seeds in SEEDS.items():
        some = [one for one in results if one.seed in seeds]
        if not some:
            continue
        shown = " ".join(map(str, sorted({one.seed for one in some})))
        yield f"{title}: seed {shown}"
        yield HEADER
        yield from _lines(some, lambda one: one.row, line, ROWS)
        yield "by setting, cohorts with bad clients"
        yield from _lines([one for one in some if one.bad], lambda one: one.setting, line)
        yield "by kind, a single bad client"
        yield from _lines([one for one in some if one.row == "single"], lambda one: one.kinds, line)
        yield from target_lines(some)
        yield decomposition_line(some)
        yield warning_line(some)
        if with_task:
            yield TASK_HEADER
            yield from _lines(some, lambda one: one.kinds or one.row, task_line)


def _lines(
    results: Iterable[Result],
    key: Callable[[Result], str],
    show: Callable[[str, Sequence[Result]], str],
    order: Iterable[str] = (),
) -> Iterator[str]:
    """One line for each group of results, groups in ``order`` and then as they come."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for name in order:
        groups[name] = []
    for one in results:
        groups[key(one)].append(one)
    yield from (show(name, some) for name, some in groups.items() if some)


def _scored(domain: str, task: Task | None, cohort: Cohort) -> Result:
    """Score one cohort on one thread."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return score.score(cohort, domain, task)


def main(
    arguments: Sequence[str] | None, domain: str, settings: Mapping[str, Setting], task: Task
) -> None:
    """Command line: score all cohorts whose clients are trained, and print the tables.

    Args:
        task: importable by name, for the processes of ``--jobs``.
    """
    parser = argparse.ArgumentParser(description=f"Table of the {domain} cohorts.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument("--settings", nargs="+", choices=tuple(settings), default=list(settings))
    parser.add_argument("--task", action="store_true", help="loss and backdoor success as well")
    parser.add_argument("--json", type=Path, help="write the result of every cohort")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args(arguments)
    drawn = [
        cohort
        for seed in options.seeds
        for cohort in cohorts_of(settings, seed)
        if cohort.row in options.rows and cohort.setting.name in options.settings
    ]
    there = [cohort for cohort in drawn if score.is_trained(cohort, domain)]
    print(f"{len(there)} of {len(drawn)} cohorts are trained", flush=True)
    work = partial(_scored, domain, task if options.task else None)
    if options.jobs == 1:
        results = [work(cohort) for cohort in there]
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(work, there))
    for text in tables(results, options.task):
        print(text)
    if options.json:
        made = [dataclasses.asdict(one) for one in results]
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
