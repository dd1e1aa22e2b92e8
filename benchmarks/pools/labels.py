"""What bad clients answer instead of the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.pools.store import seeded


def answered(
    labels: Tensor, kind: str, owner: str, seed: int, classes: int, generator: torch.Generator
) -> Tensor:
    """The labels (any shape, 0 to ``classes`` - 1) that a client of this kind trains on.

    Args:
        owner: who has a permutation of its own ("label"); all share one for "samelabel".
        generator: of random labels.
    """
    if kind == "random":
        return torch.randint(classes, labels.shape, generator=generator)
    if kind in ("label", "samelabel"):
        shared = owner if kind == "label" else "all"
        turn = torch.randperm(classes, generator=seeded("permutation", seed, kind, shared))
        return turn[labels]
    return labels
