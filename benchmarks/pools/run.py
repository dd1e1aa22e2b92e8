"""Command line of the programs that train pools: client by client, in one process or several."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.pools import store
from benchmarks.pools.previous import write_previous
from benchmarks.pools.settings import Client, Setting, clients_of
from benchmarks.pools.store import Trained

Train = Callable[[Client, int, "Path | None"], Trained]
Item = TypeVar("Item")


def train_pools(
    arguments: Sequence[str] | None,
    domain: str,
    settings: Mapping[str, Setting],
    train: Train,
) -> None:
    """Parse the options and train what is missing, in the order of ``settings``.

    Args:
        train: (client, seed, folder of the adapter to start from or None) to its adapter and
            results; it has to be importable by name, for the processes of ``--jobs``.
    """
    parser = argparse.ArgumentParser(description=f"Train the missing clients of {domain}.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--setting", choices=tuple(settings), help="default: all, one by one")
    parser.add_argument("--limit", type=int, help="train at most this many clients")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args(arguments)
    wanted = [settings[options.setting]] if options.setting else list(settings.values())
    left = options.limit
    for setting in wanted:
        pool = store.pool_path(domain, options.seed, setting.name)
        missing = [one for one in clients_of(setting) if not store.is_trained(pool, one)][:left]
        if not missing:
            continue
        previous = None
        if setting.second:
            base = settings["base"]
            previous = write_previous(pool, pool.with_name(base.name), base)
        once = partial(_timed, pool, partial(train, seed=options.seed, previous=previous))
        for name, seconds in _each(once, missing, options.jobs):
            where = f"{domain} seed {options.seed} {setting.name}"
            print(f"{where} {name}: {seconds:.1f} s", flush=True)
        left = None if left is None else left - len(missing)


def _timed(pool: Path, train: Callable[[Client], Trained], client: Client) -> tuple[str, float]:
    """Train one client on one thread; its name and the seconds that it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    store.train_missing(pool, client, train)
    return client.name, time.perf_counter() - start


def _each(
    work: Callable[[Client], tuple[str, float]], clients: Sequence[Client], jobs: int
) -> Iterator[tuple[str, float]]:
    """``work`` on all clients, in this process or in several, results as they come."""
    if jobs == 1:
        yield from map(work, clients)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(work, client) for client in clients]):
            yield done.result()
