"""A small round on a GPU before the real one: its kernels are loaded while files are being read.

CUDA loads a kernel when it is first launched, and each thread's libraries set themselves up at
their first call: half a second in all, which nothing else would overlap with. What comes first,
the comparison, is rehearsed by each thread that will make it, and what comes later by another.
"""

from __future__ import annotations

import torch

from clair_cli.engine.device import Device
from clair_cli.maths.evidence.gather import gather
from clair_cli.maths.factors.grams import grams
from clair_cli.maths.factors.stack import FactorStack, stack_factors
from clair_cli.maths.merge.from_grams import merged_cores, merged_thin
from clair_cli.maths.merge.rounding import write_modules

# Sizes at which the libraries choose what they choose for larger ones too.
_CLIENTS, _RANK, _WIDTH, _KEPT = 8, 64, 1024, 64


def rehearse_comparing(device: Device) -> None:
    """Compare clients in two modules of noise, on this thread's stream."""
    gather(grams(_noise(device)))
    device.wait()


def rehearse_merging(device: Device) -> None:
    """Merge them, and round the result."""
    stack = _noise(device)
    cores = merged_cores(grams(stack), [1 / _CLIENTS] * _CLIENTS)
    merged = [core for core in cores if core is not None]
    if len(merged) == len(cores):
        exact = merged_thin(stack, merged, _KEPT, torch.float32)
        write_modules(exact, _KEPT, 1.0, torch.bfloat16)
    device.wait()


def _noise(device: Device) -> FactorStack:
    g = torch.Generator().manual_seed(0)
    client = (
        torch.randn(_RANK, _WIDTH, generator=g).bfloat16(),
        torch.randn(_WIDTH, _RANK, generator=g).bfloat16(),
        1.0,
    )
    clients = [(client[0].roll(k, 1), client[1].roll(7 * k, 0), 1.0) for k in range(_CLIENTS)]
    return stack_factors(
        [clients, clients], (_WIDTH, _WIDTH), device=device.name, pinned=device.pinned
    )
