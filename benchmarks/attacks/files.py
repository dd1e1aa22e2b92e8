"""Attacks on what surrounds the delta weights: numbers, configuration, factors, extra tensors.

They take the clean cohort, the number of bad clients (the last ones) and a generator, and return
all members. The forms are our own, except where a source is given; most exist for LoRA alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attacks.base import State, normal

Member = tuple[str, State, dict[str, Any], bool]
FileAttack = Callable[[Sequence[Member], int, torch.Generator], list[Member]]
Change = Callable[[State, dict[str, Any]], None]


def changed(
    members: Sequence[Member], bad: int, change: Change, honest: bool = False
) -> list[Member]:
    """The members with ``change`` made on copies of the last ``bad`` ones' state and config."""
    kept = list(members[: len(members) - bad])
    for index, (_, state, config, _) in enumerate(members[len(kept) :]):
        state = {key: value.clone() for key, value in state.items()}
        config = copy.deepcopy(config)
        change(state, config)
        kept.append((f"attacker-{index:02d}", state, config, not honest))
    return kept


def first_a(state: State) -> str:
    """Name of the first module's lora_A."""
    return min(key for key in state if key.endswith(".lora_A.weight"))


def one_number(
    members: Sequence[Member], bad: int, generator: torch.Generator, value: float
) -> list[Member]:
    """One entry of one lora_A is infinite or NaN. ByzFL's Inf has it everywhere."""

    def change(state: State, config: dict[str, Any]) -> None:
        state[first_a(state)].view(-1)[0] = value

    return changed(members, bad, change)


def all_infinite(members: Sequence[Member], bad: int, generator: torch.Generator) -> list[Member]:
    """x = +inf in every entry (ByzFL's Inf)."""

    def change(state: State, config: dict[str, Any]) -> None:
        for value in state.values():
            value.fill_(torch.inf)

    return changed(members, bad, change)


def configured(
    members: Sequence[Member], bad: int, generator: torch.Generator, how: str
) -> list[Member]:
    """Honest tensors, and a configuration that makes more of them.

    ``how``: "alpha" has lora_alpha x 100, "rslora" scales by alpha / sqrt(r) instead of alpha / r,
    "pattern" has alpha x 100 in one module.
    """

    def change(state: State, config: dict[str, Any]) -> None:
        if how == "alpha":
            config["lora_alpha"] = 100 * config["lora_alpha"]
        elif how == "rslora":
            config["use_rslora"] = True
        else:
            module = first_a(state).removesuffix(".lora_A.weight")
            module = module.removeprefix("base_model.model.")
            config["alpha_pattern"] = {module: 100 * config["lora_alpha"]}

    return changed(members, bad, change)


def rescaled(
    members: Sequence[Member], bad: int, generator: torch.Generator, factor: float
) -> list[Member]:
    """B times ``factor``, A over it: the same delta weight, so these clients count as honest.

    It breaks averages of factors and half precision; a rule on delta weights must not notice.
    """

    def change(state: State, config: dict[str, Any]) -> None:
        for key, value in state.items():
            value.mul_(factor if ".lora_B." in key else 1 / factor)

    return changed(members, bad, change, honest=True)


def smuggled(
    members: Sequence[Member], bad: int, generator: torch.Generator, what: str
) -> list[Member]:
    """Honest LoRA tensors and one more: a head, an embedding, a bias or a magnitude vector.

    A reader that skips what it does not know passes it on or drops it silently. The client must be
    rejected; or, where the tensor is one that others may have too (head, saved, bias), the result
    must not have it from a few. The configuration says nothing of the extra tensor.
    """

    def change(state: State, config: dict[str, Any]) -> None:
        a = first_a(state)
        b = a.replace(".lora_A.", ".lora_B.")
        module = a.removesuffix(".lora_A.weight")
        rank, (out, columns) = state[a].shape[0], (state[b].shape[0], state[a].shape[1])
        extra: dict[str, tuple[str, tuple[int, ...]]] = {
            "head": ("base_model.model.lm_head.weight", (out, columns)),
            "saved": (f"{module}.modules_to_save.weight", (out, columns)),
            "embedding": ("base_model.model.transformer.wte.lora_embedding_A", (rank, out)),
            "bias": (f"{module}.lora_B.bias", (out,)),
            "magnitude": (f"{module}.lora_magnitude_vector", (out,)),
        }
        key, shape = extra[what]
        state[key] = normal(generator, *shape).float()

    return changed(members, bad, change)


def copied(
    members: Sequence[Member], bad: int, generator: torch.Generator, how: str
) -> list[Member]:
    """The first honest client's adapter: "bytes" as it is, "gauge" as (B R, R^-1 A), "scaled" x 10.

    In all gauges it is the same update, so it must have one vote. With x 10, the rival must not
    lose its vote to the copy.
    """
    _, rival, config, _ = members[0]

    def turned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if how == "bytes":
            return a.clone(), b.clone()
        if how == "scaled":
            return a.clone(), 10 * b
        mix = normal(generator, len(a), len(a))
        return torch.linalg.solve(mix, a.double()).float(), (b.double() @ mix).float()

    kept = list(members[: len(members) - bad])
    for index in range(bad):
        state: State = {}
        for key in sorted(k for k in rival if ".lora_A." in k):
            other = key.replace(".lora_A.", ".lora_B.")
            state[key], state[other] = turned(rival[key], rival[other])
        kept.append((f"attacker-{index:02d}", state, copy.deepcopy(config), True))
    return kept


FILES: dict[str, FileAttack] = {
    "infinite": all_infinite,
    "infinite-one": partial(one_number, value=torch.inf),
    "nan-one": partial(one_number, value=torch.nan),
    "config-alpha": partial(configured, how="alpha"),
    "config-rslora": partial(configured, how="rslora"),
    "config-pattern": partial(configured, how="pattern"),
    "factors-up": partial(rescaled, factor=1e6),
    "factors-down": partial(rescaled, factor=1e-6),
    "copy-bytes": partial(copied, how="bytes"),
    "copy-gauge": partial(copied, how="gauge"),
    "copy-scaled": partial(copied, how="scaled"),
    **{
        f"smuggled-{what}": partial(smuggled, what=what)
        for what in ("head", "saved", "embedding", "bias", "magnitude")
    },
}
