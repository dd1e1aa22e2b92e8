"""The recipe of docs/federated.md in NVFlare's simulator: six clients, two of them flipped, one
that sends nonsense and one that dies; or a FedAvgRecipe of two rounds with four clients."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.federated.clients import config, fresh
from tests.federated.recipes import recipe

SCRIPT = str(Path(__file__).with_name("nvflare_client.py"))


class AdapterModel(torch.nn.Module):
    """A model whose state dict is an adapter: what FedAvgRecipe starts from."""

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        for key, array in fresh(rank).items():
            *path, name = key.split(".")
            inner: torch.nn.Module = self
            for part in path:
                if part not in dict(inner.named_children()):
                    inner.add_module(part, torch.nn.Module())
                inner = inner.get_submodule(part)
            inner.register_parameter(name, torch.nn.Parameter(torch.from_numpy(array)))


def run_job(out: Path) -> None:
    names: dict[str, Any] = {"lora_config": config(), "state": str(out / "server.safetensors")}
    names |= {"script": SCRIPT, "n": 8}
    exec(recipe("NVFlare"), names)
    names["job"].simulator_run(str(out / "workspace"), n_clients=8)


def run_recipe(out: Path) -> None:
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.sim_env import SimEnv

    from clair_cli.federated.nvflare import ClairAggregator

    job = FedAvgRecipe(
        name="adapters", model=AdapterModel(), min_clients=4, num_rounds=2, train_script=SCRIPT,
        aggregator=ClairAggregator(config(), state=str(out / "server.safetensors")),
    )  # fmt: skip
    job.execute(SimEnv(num_clients=4, workspace_root=str(out / "workspace")))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    os.chdir(folder)
    {"job": run_job, "recipe": run_recipe}[sys.argv[1]](folder)
