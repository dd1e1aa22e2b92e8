"""The adapter that a second round starts from: the mean of the honest clients of the first."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.attacks.base import as_lora
from benchmarks.pools import store
from benchmarks.pools.settings import Setting, clients_of


def write_previous(pool: Path, base: Path, setting: Setting) -> Path:
    """Write ``previous`` beside the clients of ``pool`` unless it is there; returns its folder.

    It is the mean of the delta weights of the honest clients of ``setting`` in the pool ``base``,
    at their rank and scale, so that clients can go on training it.
    """
    folder = pool / "previous"
    if folder.exists():
        return folder
    clients = [client for client in clients_of(setting) if not client.bad]
    if not all(store.is_trained(base, client) for client in clients):
        raise SystemExit(f"{base} lacks honest clients: train the setting {setting.name} first")
    honest = [base / client.name for client in clients]
    adapters = [store.load_adapter(one) for one in honest]
    each = [store.dense(*adapter) for adapter in adapters]
    config = adapters[0][1]
    scale = config["lora_alpha"] / config["r"]
    mean = {name: torch.stack([one[name] for one in each]).mean(0) / scale for name in each[0]}
    state, made = as_lora(mean, config, config["r"])
    made["lora_alpha"] = config["lora_alpha"]
    store.save_adapter(folder, (state, made), {"honest": len(honest)})
    return folder
