"""Clients of a federated loop, made by hand: what they train is a share of one task and their own.

Numpy only, so that the processes of real frameworks can use it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

State = dict[str, np.ndarray]
MODULES = {"l0.q": (24, 16), "l0.up": (40, 16), "l1.q": (24, 16), "l1.down": (16, 40)}
PREFIX = "base_model.model."
HEAD = f"{PREFIX}score.weight"


def config(rank: int = 4, alpha: float | None = None) -> dict[str, Any]:
    """The fields of a LoraConfig; alpha is twice the rank unless given."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "task_type": "SEQ_CLS",
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "target_modules": ["q", "up", "down"],
        "bias": "none",
    }


def task() -> dict[str, np.ndarray]:
    """What honest training moves every module's delta weight by."""
    g = np.random.default_rng(7)
    return {m: g.normal(size=(o, 2)) @ g.normal(size=(2, i)) for m, (o, i) in MODULES.items()}


def deltas(state: Mapping[str, np.ndarray], scaling: float = 2.0) -> dict[str, np.ndarray]:
    """Dense delta weights of a state dict, in float64."""
    found = {}
    for m in MODULES:
        if f"{PREFIX}{m}.lora_A.weight" in state:
            lora_A = np.asarray(state[f"{PREFIX}{m}.lora_A.weight"], dtype=np.float64)
            lora_B = np.asarray(state[f"{PREFIX}{m}.lora_B.weight"], dtype=np.float64)
            found[m] = scaling * lora_B @ lora_A
    return found


def cut(delta: np.ndarray, rank: int, scaling: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """(lora_A, lora_B) in float32: the best of that rank."""
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    lora_B = left[:, :rank] * values[:rank] / scaling
    return right[:rank].astype(np.float32), lora_B.astype(np.float32)


def fresh(rank: int = 4) -> State:
    """An adapter before any training: B is 0."""
    g, state = np.random.default_rng(3), {}
    for m, (o, i) in MODULES.items():
        state[f"{PREFIX}{m}.lora_A.weight"] = g.normal(size=(rank, i)).astype(np.float32)
        state[f"{PREFIX}{m}.lora_B.weight"] = np.zeros((o, rank), np.float32)
    return state


def trained(
    start: Mapping[str, np.ndarray] | None,
    seed: int,
    *,
    rank: int = 4,
    sign: float = 1.0,
    scaling: float = 2.0,
    own: float = 0.5,
) -> State:
    """What a client sends: its start moved by 0.3 x the task and something of its own.

    Args:
        start: what it was sent; None for a fresh adapter.
        seed: of its own part. sign: -1 for an attacker who flips what it trained.
    """
    g, state = np.random.default_rng([1, seed]), {}
    before = {} if start is None else deltas(start, scaling)
    for m, shared in task().items():
        out, in_ = MODULES[m]
        alone = g.normal(size=(out, 1)) @ g.normal(size=(1, in_))
        after = before.get(m, 0.0) + sign * (0.3 * shared + own * alone)
        state[f"{PREFIX}{m}.lora_A.weight"], state[f"{PREFIX}{m}.lora_B.weight"] = cut(
            after, rank, scaling
        )
    return state


def descended(
    start: Mapping[str, np.ndarray], seed: int, *, sign: float = 1.0, steps: int = 30
) -> State:
    """What a client sends that trains both factors by gradient descent, from its start, towards
    0.9 x the task and something of its own (scaling 2).

    Args:
        sign: -1 for an attacker who flips the change of every tensor.
    """
    g, state = np.random.default_rng([2, seed]), {}
    for m, shared in task().items():
        out, in_ = MODULES[m]
        goal = 0.9 * shared + 0.5 * g.normal(size=(out, 1)) @ g.normal(size=(1, in_))
        keys = [f"{PREFIX}{m}.lora_{side}.weight" for side in "AB"]
        first = lora_A, lora_B = [np.asarray(start[key], np.float64) for key in keys]
        rate = 0.05 / np.linalg.norm(goal, 2)
        for _ in range(steps):
            missed = 2.0 * lora_B @ lora_A - goal
            lora_A, lora_B = (
                lora_A - rate * 2.0 * lora_B.T @ missed,
                lora_B - rate * 2.0 * missed @ lora_A.T,
            )
        for key, before, after in zip(keys, first, (lora_A, lora_B), strict=True):
            state[key] = (before + sign * (after - before)).astype(np.float32)
    return state


def loss(state: Mapping[str, np.ndarray] | None, scaling: float = 2.0) -> float:
    """Squared distance to what three rounds of honest training reach, 1 for a fresh adapter."""
    found = {} if state is None else deltas(state, scaling)
    goal = {m: 0.9 * delta for m, delta in task().items()}
    missed = sum(float(((goal[m] - found.get(m, 0.0)) ** 2).sum()) for m in goal)
    return missed / sum(float((delta**2).sum()) for delta in goal.values())
