"""Other ways to merge a cohort, each as a whole process, for `speed.py`.

python -m benchmarks.speed.peers METHOD COHORT OUT

mean    mean of the factors, which is not the mean of the updates
qr      exact mean: QR of the stacked factors, SVD of the core, float64; cut to rank 128
qr32    the same in float32
svd     peft's add_weighted_adapter with combination_type="svd"
cat     the same with "cat"
krum    Multi-Krum of byzfl on dense updates in one long vector (small shapes only)
geomed  geometric median of byzfl, likewise
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK = 128  # what clair writes for these cohorts
Pair = tuple[torch.Tensor, torch.Tensor, float]


def clients_of(cohort: Path) -> list[Path]:
    return sorted(path.parent for path in cohort.glob("*/adapter_model.safetensors"))


def load(client: Path) -> tuple[dict[str, torch.Tensor], float]:
    config = json.loads((client / "adapter_config.json").read_text())
    return load_file(client / "adapter_model.safetensors"), config["lora_alpha"] / config["r"]


def mean_of_factors(cohort: Path, out: Path) -> None:
    """Load all, average tensor by tensor, save. Ranks must be equal."""
    states = [load(client)[0] for client in clients_of(cohort)]
    save_file(
        {
            key: torch.stack([s[key].float() for s in states]).mean(0).bfloat16()
            for key in states[0]
        },
        out,
    )


def exact_mean(cohort: Path, out: Path, dtype: torch.dtype) -> None:
    """QR of the stacked factors of every module and SVD of the small core."""
    loaded = [load(client) for client in clients_of(cohort)]
    result = {}
    for key in [key for key in loaded[0][0] if ".lora_A." in key]:
        other = key.replace(".lora_A.", ".lora_B.")
        A = torch.cat([state[key].to(dtype) for state, _ in loaded])
        B = torch.cat([state[other].to(dtype) * (s / len(loaded)) for state, s in loaded], dim=1)
        left, core_B = torch.linalg.qr(B)
        right, core_A = torch.linalg.qr(A.T)
        u, values, vt = torch.linalg.svd(core_B @ core_A.T, full_matrices=False)
        half = values[:RANK].sqrt()
        result[other] = (left @ (u[:, :RANK] * half)).bfloat16().contiguous()
        result[key] = ((half[:, None] * vt[:RANK]) @ right.T).bfloat16().contiguous()
    save_file(result, out)


def base_model(cohort: Path) -> Any:
    """Linear layers of the cohort's shapes whose weights take no memory."""
    state, _ = load(clients_of(cohort)[0])
    root = torch.nn.Module()
    for key in [key for key in state if ".lora_A." in key]:
        other = state[key.replace(".lora_A.", ".lora_B.")]
        *parents, name = key.removeprefix("base_model.model.").split(".lora_A.")[0].split(".")
        module = root
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        with torch.device("meta"):
            linear = torch.nn.Linear(state[key].shape[1], other.shape[0], bias=False)
        shared = torch.zeros(1, dtype=torch.bfloat16).expand(linear.weight.shape)
        linear.weight = torch.nn.Parameter(shared, requires_grad=False)
        module.add_module(name, linear)
    return root


def peft_merge(cohort: Path, out: Path, kind: str) -> None:
    """peft's own weighted merge, in memory as peft has it, then saved."""
    import peft

    clients = clients_of(cohort)
    config = peft.LoraConfig.from_pretrained(clients[0])
    config.task_type = None  # the layers alone are no language model
    model = peft.PeftModel.from_pretrained(
        base_model(cohort), clients[0], adapter_name="c0", config=config
    )
    for number, client in enumerate(clients[1:], start=1):
        model.load_adapter(client, adapter_name=f"c{number}")
    names = [f"c{number}" for number in range(len(clients))]
    options = {"svd_rank": RANK} if kind == "svd" else {}
    model.add_weighted_adapter(
        names, [1 / len(names)] * len(names), "merged", combination_type=kind, **options
    )
    model.save_pretrained(out, selected_adapters=["merged"])


def byzfl_aggregators() -> types.ModuleType:
    """byzfl.aggregators without byzfl's own __init__, which imports torchvision and more."""
    found = importlib.util.find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("needs byzfl")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def dense_rule(cohort: Path, out: Path, rule: str) -> None:
    """A rule of byzfl on every client's dense updates as one vector; the result is dense."""
    byzfl = byzfl_aggregators()
    rows = []
    for client in clients_of(cohort):
        state, scaling = load(client)
        keys = [key for key in state if ".lora_A." in key]
        rows.append(
            torch.cat(
                [
                    (scaling * state[k.replace(".lora_A.", ".lora_B.")].float() @ state[k].float())
                    .flatten()
                    for k in keys
                ]
            )
        )  # fmt: skip
    bad = max(1, len(rows) // 5)
    aggregator = byzfl.MultiKrum(f=bad) if rule == "krum" else byzfl.GeometricMedian()
    save_file({"delta": aggregator(torch.stack(rows))}, out)


def main() -> None:
    """Command line."""
    method, cohort, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if method == "mean":
        mean_of_factors(cohort, out)
    elif method in ("qr", "qr32"):
        exact_mean(cohort, out, torch.float64 if method == "qr" else torch.float32)
    elif method in ("svd", "cat"):
        peft_merge(cohort, out, method)
    else:
        dense_rule(cohort, out, method)


if __name__ == "__main__":
    main()
