"""Pools on disk: one PEFT folder per client, written whole or not at all.

A pool is ``$CLAIR_BENCH_CACHE/<domain>/seed-<n>/<setting>/``. A client's folder has, beside PEFT's
two files, ``client.json``: what the client is and what its training has come to.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.pools.settings import Client

ABOUT = "client.json"
Adapter = tuple[dict[str, Tensor], dict[str, Any]]
Trained = tuple[Adapter, Mapping[str, Any]]


def cache() -> Path:
    """The folder of all pools, which the environment names: no pool lies in the source tree."""
    named = os.environ.get("CLAIR_BENCH_CACHE")
    if not named:
        sys.exit("Set CLAIR_BENCH_CACHE to a folder for trained adapters, outside the repository.")
    return Path(named)


def pool_path(domain: str, seed: int, setting: str) -> Path:
    """Folder of one pool."""
    return cache() / domain / f"seed-{seed}" / setting


def seeded(*parts: object) -> torch.Generator:
    """Random generator that depends on the text of all parts, and on nothing else."""
    return torch.Generator().manual_seed(crc32("/".join(map(str, parts)).encode()))


def is_trained(pool: Path, client: Client) -> bool:
    """Whether the client's folder is there; such a folder is complete."""
    return (pool / client.name / ABOUT).exists()


def save_adapter(folder: Path, adapter: Adapter, about: Mapping[str, Any]) -> None:
    """Write a PEFT folder with ``about`` beside it; a folder that is there already stays."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state, config = adapter
    save_file({k: v.contiguous() for k, v in state.items()}, partial / "adapter_model.safetensors")
    (partial / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (partial / ABOUT).write_text(json.dumps(dict(about), indent=1) + "\n")
    try:
        partial.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def load_adapter(folder: Path) -> Adapter:
    """State dict and configuration of a saved adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return load_file(folder / "adapter_model.safetensors"), config


def about(folder: Path) -> dict[str, Any]:
    """What `save_adapter` was told about an adapter."""
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found


def train_missing(pool: Path, client: Client, train: Callable[[Client], Trained]) -> bool:
    """Train and save one client unless its folder is there; returns whether it was trained."""
    if is_trained(pool, client):
        return False
    adapter, results = train(client)
    setting = client.setting
    facts = {
        "name": client.name, "setting": setting.name, "group": client.group,
        "kind": client.kind, "bad": client.bad, "steps": setting.steps, "rate": setting.rate,
        "rank": setting.rank, "same_start": setting.same_start,
    }  # fmt: skip
    save_adapter(pool / client.name, adapter, {**facts, **results})
    return True


def dense(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Delta weights of one adapter: module to (out, in), float64."""
    scale = config["lora_alpha"] / config["r"]
    return {
        name.removesuffix(".lora_A.weight"): scale
        * (state[name.replace(".lora_A.", ".lora_B.")].double() @ value.double())
        for name, value in sorted(state.items())
        if name.endswith(".lora_A.weight")
    }
