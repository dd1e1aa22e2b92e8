"""Train the pools of LoRA clients of the vision transformer; clients that are there are kept.

    python -m benchmarks.vision.train --seed 0 [--setting base] [--limit N] [--jobs N]

Interrupted, it goes on where it stopped: a client's folder is complete or not there. One process
uses one thread.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.pools import run
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained
from benchmarks.vision.clients import SETTINGS

DOMAIN = "vision"


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """Train one client; imports peft and scikit-learn when it is first called."""
    from benchmarks.vision import training

    return training.train(client, seed, previous)


if __name__ == "__main__":
    run.train_pools(None, DOMAIN, SETTINGS, train)
