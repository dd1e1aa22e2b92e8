"""What tests of the programs share: made-up results, and their own number of threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread, as the programs set it, until the test ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cells() -> list[dict[str, Any]]:
    """Copying rounds with made-up scores: two inits, two seeds, two kinds."""
    chance = random.Random(1)
    columns = ["mean", "geometric-median", "multi-krum", "oracle", "clair merge"]
    measures = [
        "own_accuracy",
        "new_accuracy",
        "backdoor",
        "backdoor_words",
        "own_loss",
        "new_loss",
    ]
    made = []
    for init in ("same", "own"):
        for kind, share in [("clean", 0.0), ("wrong", 0.25), ("backdoor", 0.25), ("backdoor", 0.6)]:
            bad = round(20 * share)
            for seed in (0, 1):
                scores = {
                    name: {m: chance.random() for m in [*measures, "error"]}
                    for name in ["base", *columns]
                }
                for name in ["local", "clair refine", *(["attack"] if bad else [])]:
                    scores[name] = {m: chance.random() for m in measures}
                verdicts = {
                    "bad": bad, "hits": bad // 2, "suspicious_bad": 1, "honest": 20 - bad,
                    "false_flags": seed, "suspicious_honest": 0, "undetermined": seed,
                    "refined": 20 - bad if share < 0.5 else 0, "missed": ["a"], "wronged": [],
                }  # fmt: skip
                made.append(
                    {"init": init, "seed": seed, "kind": kind, "share": share}
                    | {"scores": scores, "verdicts": verdicts}
                )
    return made
