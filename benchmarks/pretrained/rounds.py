"""Rounds of the pretrained clients, one on top of the other, and what earlier rounds add.

    python -m benchmarks.pretrained.rounds --seeds 0 [--limit N] [--only NAME ...]

Four cohorts a seed for three rounds (`COHORTS`; the bad clients are bad in each), and one of seven
of whom two are honest for five rounds, and one or the other is bad in the sixth, once as each of
`TURNS`; five more honest clients join in that round. A client has the same windows in all rounds
and other batches of them. Every round starts from what `clair merge` made of the one before; where
that is nothing, from what that one started from. What is there is kept: a client's folder is
complete or not there, so training goes on where it stopped; whole cohorts are printed.

The table is of `clair inspect` with and without `--earlier`: loadings and standard errors (means),
and how many clients have each verdict and confidence. ``lifted`` are those whose confidence earlier
rounds raised. The correlation is of honest clients' loadings, less the mean of their round, between
the second and the third round.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import clair_cli
from benchmarks.pools import store
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained
from benchmarks.pretrained.clients import BASE
from clair_cli.report.model import ClientReport, Report

HONEST, BAD = 6, 2
STAYING, TURNING, JOINING = 5, 2, 5  # honest clients of the cohort in which some turn
TURNS = ("label", "random", "backdoor")
Members = tuple[Client, ...]
Train = Callable[[Client, int, "Path | None", str, str], Trained]


@dataclass(frozen=True)
class Cohort:
    """Clients that stay together.

    Attributes:
        members: of all rounds; the first round's adapters are those of the base setting.
        turning: members who are bad in a further round, one of them at a time.
        joining: clients of that round only.
    """

    name: str
    members: Members
    rounds: int
    turning: Members = ()
    joining: Members = ()


def honest(first: int, count: int) -> Members:
    """Honest clients from number ``first`` on."""
    return tuple(Client(BASE, "all", "honest", first + k) for k in range(count))


def cohort(kind: str) -> Cohort:
    """Six honest clients and two of a bad kind, if any."""
    bad = tuple(Client(BASE, "all", kind, k) for k in range(BAD if kind else 0))
    return Cohort(kind or "clean", (*honest(0, HONEST), *bad), 3)


COHORTS = (
    *map(cohort, ("", "samelabel", "random", "backdoor")),
    Cohort(
        "turning", honest(0, STAYING + TURNING), 5,
        honest(STAYING, TURNING), honest(STAYING + TURNING, JOINING),
    ),
)  # fmt: skip


def folder_of(one: Cohort, seed: int, number: int) -> Path:
    """Where a round's clients lie; all cohorts share the first one, which is the base pool."""
    if number == 1:
        return store.pool_path("pretrained", seed, BASE.name)
    return store.pool_path("pretrained", seed, "rounds") / one.name / f"clients-{number}"


def merged(one: Cohort, seed: int, number: int) -> Path:
    """The folder of a round's merged adapter and report; a report alone lies beside it."""
    return store.pool_path("pretrained", seed, "rounds") / one.name / "merged" / f"round-{number}"


def started_from(one: Cohort, seed: int, number: int) -> Path | None:
    """The last merged adapter before a round."""
    before = (merged(one, seed, n) for n in range(number - 1, 0, -1))
    return next((folder for folder in before if folder.exists()), None)


def steps(one: Cohort, seed: int) -> Iterator[tuple[Path, Client, int, str]]:
    """What is to be trained, in order: its folder, client, round and what it turns to."""
    for number in range(1, one.rounds + 1 + bool(one.turning)):
        last, folder = number > one.rounds, folder_of(one, seed, number)
        for client in (*one.members, *(one.joining if last else ())):
            yield folder / client.name, client, number, ""
        for client in one.turning if last else ():
            for turned in TURNS:
                yield folder / f"{client.name}-{turned}", client, number, turned


def by_peft(client: Client, seed: int, previous: Path | None, draw: str, turned: str) -> Trained:
    """Train one client; imports peft, transformers and the weights when it is first called."""
    from benchmarks.pretrained import training

    return training.train(client, seed, previous, draw, turned)


def train(one: Cohort, seed: int, limit: int | None, once: Train = by_peft) -> int:
    """Train what is missing, and merge each round that is whole; returns how many were trained."""
    done = 0
    for folder, client, number, turned in steps(one, seed):
        if (folder / store.ABOUT).exists():
            continue
        if done == limit:
            break
        if number > 1:
            _merge(one, seed, number - 1)
        began = time.perf_counter()
        previous = started_from(one, seed, number)
        if number == 1:  # as the pool's own program does it
            first = partial(once, seed=seed, previous=None, draw="batches", turned="")
            store.train_missing(folder.parent, client, first)
        else:
            draw = f"batches-{number}"
            adapter, results = once(client, seed, previous, draw, turned)
            about = {"name": client.name, "kind": turned or client.kind, "round": number}
            store.save_adapter(folder, adapter, {**about, **results})
        done += 1
        took = time.perf_counter() - began
        print(f"{one.name} seed {seed} round {number} {folder.name}: {took:.1f} s", flush=True)
    return done


def loaded(one: Cohort, seed: int, number: int, who: str = "", turned: str = "") -> dict[str, Any]:
    """A round's clients by name; one of them as what it turned to."""
    folder = folder_of(one, seed, number)
    clients = (*one.members, *(one.joining if number > one.rounds else ()))
    found = {client.name: store.load_adapter(folder / client.name) for client in clients}
    if turned:
        found[who] = store.load_adapter(folder / f"{who}-{turned}")
    return found


def _options(one: Cohort, seed: int, number: int) -> dict[str, Any]:
    previous = started_from(one, seed, number)
    start: dict[str, Any] = {"fresh": True} if previous is None else {"previous": previous}
    return {**start, "threads": 1}


def _merge(one: Cohort, seed: int, number: int) -> None:
    """Merge a round as a server does, unless that was done."""
    output = merged(one, seed, number)
    report = output.with_name(f"{output.name}.report.json")
    if output.exists() or report.exists():
        return
    options = _options(one, seed, number)
    clients = loaded(one, seed, number)
    output.parent.mkdir(parents=True, exist_ok=True)
    clair_cli.merge(clients, output, rank="same", keep_alpha=True, **options)


def judged(one: Cohort, seed: int, number: int, who: str = "", turned: str = "") -> Report:
    """A round's report with what earlier rounds add; `alone` has what it says by itself."""
    options = _options(one, seed, number)
    if "previous" in options:
        options["earlier"] = merged(one, seed, 1).parent
    clients = loaded(one, seed, number, who, turned)
    return clair_cli.inspect(clients, fail_on="never", **options).report


def alone(client: ClientReport) -> str:
    """How sure the verdict is by the last round alone."""
    return (client.earlier.alone if client.earlier else client.confidence) or "-"


def line(title: str, clients: Sequence[ClientReport]) -> str:
    """Some clients of one round, in a line."""
    held = [c for c in clients if c.scores.loading is not None]
    loading = mean(c.scores.loading or 0.0 for c in held) if held else float("nan")
    error = mean(c.scores.loading_se or 0.0 for c in held) if held else float("nan")
    lifted = sum(c.earlier is not None and c.confidence != c.earlier.alone for c in clients)
    before = Counter(f"{c.verdict} {alone(c)}" for c in clients)
    after = Counter(f"{c.verdict} {c.confidence or '-'}" for c in clients)
    shown = [", ".join(f"{n} {what}" for what, n in sorted(x.items())) for x in (before, after)]
    return f"{title:34} {loading:6.2f} +- {error:.2f} {lifted:4}  {shown[0]}" + (
        f" -> {shown[1]}" if before != after else ""
    )


def table(one: Cohort, seed: int) -> Iterator[str]:
    """The lines of one cohort."""
    for number in range(1, one.rounds + 1):
        report = judged(one, seed, number)
        for kind in ("honest", "bad"):
            some = [c for c in report.clients if c.name.startswith("honest") == (kind == "honest")]
            if some:
                yield line(f"{one.name} {seed}, round {number}, {kind}", some)
    if one.turning:
        report = judged(one, seed, one.rounds + 1)
        yield line(f"{one.name} {seed}, round {one.rounds + 1}, honest", report.clients)
    for turned in TURNS if one.turning else ():
        reports = {c.name: judged(one, seed, one.rounds + 1, c.name, turned) for c in one.turning}
        bad = [c for name, r in reports.items() for c in r.clients if c.name == name]
        rest = [c for name, r in reports.items() for c in r.clients if c.name != name]
        yield line(f"{one.name} {seed}, turned to {turned}", bad)
        yield line(f"{one.name} {seed}, the others, twice", rest)


def _apart(report: Report) -> dict[str, float]:
    """Honest clients' loadings less their mean."""
    found = {c.name: c.scores.loading for c in report.clients if c.name.startswith("honest")}
    held = {name: value for name, value in found.items() if value is not None}
    return {name: value - mean(held.values()) for name, value in held.items()}


def correlation(cohorts: Sequence[tuple[Cohort, int]]) -> float:
    """Of honest clients' loadings in the second and third round, within their rounds."""
    pairs = []
    for one, seed in cohorts:
        second, third = (_apart(judged(one, seed, number)) for number in (2, 3))
        pairs += [(second[name], third[name]) for name in second.keys() & third.keys()]
    return float(torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train what is missing, then print what is whole."""
    parser = argparse.ArgumentParser(description="What earlier rounds add, on pretrained clients.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="train at most this many clients")
    named = {one.name: one for one in COHORTS}
    parser.add_argument("--only", nargs="+", choices=tuple(named), default=list(named))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wanted = [(named[name], seed) for seed in options.seeds for name in options.only]
    left = options.limit
    for one, seed in wanted:
        trained = train(one, seed, left)
        left = None if left is None else left - trained
    whole = [pair for pair in wanted if all(_there(path) for path, *_ in steps(*pair))]
    clients = {path for pair in whole for path, *_ in steps(*pair)}
    print(f"{len(whole)} of {len(wanted)} cohorts are trained, {len(clients)} clients")
    if whole:
        print(f"{'':34} loading        lifted  verdicts: alone -> with earlier rounds")
    for pair in whole:
        for one_line in table(*pair):
            print(one_line, flush=True)
    if whole:
        print(f"correlation of honest loadings, rounds 2 and 3: {correlation(whole):.2f}")


def _there(folder: Path) -> bool:
    return (folder / store.ABOUT).exists()


if __name__ == "__main__":
    main()
