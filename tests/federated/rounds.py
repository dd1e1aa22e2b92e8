"""Rounds of six tiny clients, two of whom flip what they trained, and what was found of them."""

from __future__ import annotations

import numpy as np
import torch

from clair_cli.federated import Result, Server
from tests.federated.clients import MODULES, PREFIX, State, config, trained

SIX = range(6)
FLIPPED = (3, 5)
MIXED = (8, 4, 8, 4, 16, 8)  # ranks


def cohort(server: Server, seed: int = 0, *, ranks: tuple[int, ...] = (4,) * 6) -> dict[int, State]:
    """A round of six clients who start from what they are sent; two flip what they trained."""
    return {
        k: trained(
            server.adapter_for(k), 10 * seed + k, rank=ranks[k], sign=-1 if k in FLIPPED else 1
        )
        for k in SIX
    }


def verdicts(result: Result) -> dict[str, str]:
    return {client.name: client.verdict for client in result.report.clients}


def left_out(result: Result) -> set[int]:
    return {int(c.name) for c in result.report.clients if c.weight == 0}


def rejected(result: Result, name: str) -> str:
    (client,) = (c for c in result.report.clients if c.name == name)
    assert client.verdict == "rejected" and client.weight == 0
    return client.reasons[0].text


def mixed_server() -> Server:
    return Server({k: config(rank) for k, rank in enumerate(MIXED)})


def left_out_names(result: Result) -> set[str]:
    return {c.name for c in result.report.clients if c.weight == 0}


def as_torch(state: State, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array).to(dtype) for key, array in state.items()}


def kohya(state: State) -> State:
    """The same adapter under kohya's names, alpha 8."""
    found = {}
    for m in MODULES:
        name = f"lora_unet_{m.replace('.', '_')}"
        found[f"{name}.lora_down.weight"] = state[f"{PREFIX}{m}.lora_A.weight"]
        found[f"{name}.lora_up.weight"] = state[f"{PREFIX}{m}.lora_B.weight"]
        found[f"{name}.alpha"] = np.array(8.0, np.float32)
    return found
