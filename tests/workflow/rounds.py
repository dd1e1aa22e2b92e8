"""Rounds of small clients on disk, each on top of what the one before merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests import cohorts
from tests.cohorts import MODULES, Client, clair, factored, plus, random_deltas

MERGED = Path("rounds")


def clients_of(
    number: int, *, n: int = 6, cosine: float = 0.3, bad: Sequence[str] = (), seed: int = 0
) -> dict[str, Client]:
    """What the clients of a round send: c0, c1... share one update in all rounds, the bad ones have
    nothing of it. Each starts from the merge of the last round that made one."""
    common = random_deltas(np.random.default_rng(seed))
    own = cohorts.honest_deltas(n, cosine=cosine, seed=100 * seed + number, common=common)
    rng = np.random.default_rng([seed, number])
    before = next((MERGED / str(k) for k in range(number - 1, 0, -1)
                   if (MERGED / str(k)).exists()), None)  # fmt: skip
    start = {} if before is None else cohorts.read_dense(before)
    sent = {}
    for k, delta in enumerate(own):
        update = random_deltas(rng) if f"c{k}" in bad else delta
        sent[f"c{k}"] = factored(plus(update, start), 16, seed=k)
    assert all(delta.keys() == MODULES.keys() for delta in own)
    return sent


def play(number: int, *options: object, **how: object) -> Path:
    """Save the clients of a round and merge them; the folder of the clients."""
    MERGED.mkdir(exist_ok=True)
    folder = cohorts.save(Path(f"round{number}"), clients_of(number, **how))  # type: ignore[arg-type]
    if number > 1 and "--previous" not in options:
        options = ("--previous", MERGED / str(number - 1), *options)
    done = clair("merge", folder, "-o", MERGED / str(number), *options)
    assert done.exit_code == 0, done.stderr
    return folder
