"""Train the pools of LoRA clients of the pretrained BERT; clients that are there are kept.

    python -m benchmarks.pretrained.train --seed 0 [--setting base] [--limit N] [--jobs N]

Interrupted, it goes on where it stopped: a client's folder is complete or not there. One process
uses one thread, and computes in bfloat16 where that is safe (torch's autocast).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.pools import run
from benchmarks.pools.settings import Client
from benchmarks.pools.store import Trained
from benchmarks.pretrained.clients import SETTINGS

DOMAIN = "pretrained"


def train(client: Client, seed: int, previous: Path | None) -> Trained:
    """Train one client; imports peft, transformers and the weights when it is first called."""
    from benchmarks.pretrained import training

    return training.train(client, seed, previous)


if __name__ == "__main__":
    run.train_pools(None, DOMAIN, SETTINGS, train)
