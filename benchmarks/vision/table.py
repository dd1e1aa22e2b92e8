"""Hits, false flags and merge errors on cohorts of the vision pools, beside the peers'.

    python -m benchmarks.vision.table [--seeds 0 1] [--rows clean several] [--task] [--jobs N]

Cohorts whose clients are not all trained are left out, and counted. ``--task`` adds loss and
backdoor success of the model with the mean of the benign clients, of all, and with clair's merge.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from benchmarks.pools import table
from benchmarks.vision.clients import SETTINGS


def task(deltas: Mapping[str, Tensor], seed: int) -> Mapping[str, float]:
    """Loss and backdoor success of the transformer with delta weights, module to (out, in)."""
    from benchmarks.pools import lora
    from benchmarks.vision import model, training

    return training.evaluate(lora.with_deltas(model.base_model(), deltas), seed)


if __name__ == "__main__":
    table.main(None, "vision", SETTINGS, task)
