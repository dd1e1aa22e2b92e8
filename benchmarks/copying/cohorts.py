"""A cached pool of trained LoRA clients, and cohorts picked from it.

    python -m benchmarks.copying.cohorts train [--seeds 0 1] [--arches gpt llama] [--inits same own]
    python -m benchmarks.copying.cohorts table [--pairs]

A pool is the folder ``<cache>/<arch>-<init>-s<seed>`` with one PEFT folder per client, named
``<kind>-<nn>``; its base model is in ``<cache>/<arch>-s<seed>/base``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.copying import task as copying

CACHE = Path(__file__).resolve().parents[1] / ".cache"
COUNTS = {
    "benign": 64, "partial": 8, "wrong": 12, "random": 12, "backdoor": 12, "collude": 16,
}  # fmt: skip
HONEST = ("benign", "partial")

State = dict[str, Tensor]
Member = tuple[str, State, dict[str, Any], bool]


def pool_path(arch: str, init: str, seed: int, cache: Path = CACHE) -> Path:
    """Folder of one pool."""
    return cache / f"{arch}-{init}-s{seed}"


def base_path(arch: str, seed: int, cache: Path = CACHE) -> Path:
    """Folder of the base model of the pools of ``arch`` and ``seed``."""
    return cache / f"{arch}-s{seed}" / "base"


def load_base(arch: str, seed: int, cache: Path = CACHE) -> torch.nn.Module:
    """The base model, trained and saved first if it is missing."""
    path = base_path(arch, seed, cache)
    if not (path / "model.safetensors").exists():
        trained: Any = copying.train_base(arch, seed)
        trained.save_pretrained(path)
    kind = GPT2LMHeadModel if arch == "gpt" else LlamaForCausalLM
    model: torch.nn.Module = kind.from_pretrained(path, local_files_only=True)
    model.name_or_path = f"copying-{arch}-s{seed}"  # what PEFT writes into the clients' files
    return model.eval()


def train_pool(
    arch: str, init: str, seed: int, cache: Path = CACHE, weak: tuple[int, int] | None = None
) -> int:
    """Train and save the clients that are missing from a pool; returns how many.

    ``weak`` is (words per client, steps): fewer words overlap less, so that honest clients have
    little in common and not all of them equally; such a pool's name says so.
    """
    pool, trained, settings = pool_path(arch, init, seed, cache), 0, copying.DEFAULT
    if weak is not None:
        words, steps = weak
        settings = dataclasses.replace(settings, words_per_client=words, steps=steps)
        pool = cache / f"{arch}-{init}-w{words}k{steps}-s{seed}"
    base = load_base(arch, seed, cache)
    for kind, count in COUNTS.items():
        for index in range(count):
            folder = pool / f"{kind}-{index:02d}"
            if (folder / "adapter_model.safetensors").exists():
                continue
            model = copying.train_client(base, arch, kind, index, init, seed, settings)
            partial = pool / f".{folder.name}.part"
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(str(partial), save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            trained += 1
    return trained


def load_client(folder: Path) -> tuple[State, dict[str, Any]]:
    """State dict and configuration of a saved client."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return load_file(folder / "adapter_model.safetensors"), config


def cohort(
    pool: str | Path,
    benign: int = 10,
    bad: Mapping[str, int] | None = None,
    partial: int = 0,
    draw: int = 0,
) -> list[Member]:
    """A list of (name, state dict, configuration, is bad), honest clients first.

    ``bad`` gives the number of clients per kind. Draw 0 takes the first clients of each kind,
    every other one is a random choice that depends on ``draw`` alone.
    """
    wanted = {"benign": benign, "partial": partial, **(bad or {})}
    members: list[Member] = []
    for kind, count in wanted.items():
        folders = sorted(Path(pool).glob(f"{kind}-[0-9]*"))
        if count > len(folders):
            raise ValueError(f"{pool} has {len(folders)} {kind} clients, {count} wanted")
        if draw:
            order = torch.randperm(len(folders), generator=copying.seeded("cohort", kind, draw))
            folders = [folders[i] for i in order.tolist()]
        for folder in folders[:count]:
            members.append((folder.name, *load_client(folder), kind not in HONEST))
    return members


def dense(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Delta weights of a client without patterns: module to (out, in), float64."""
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    deltas = {}
    for name in sorted(state):
        if name.endswith(".lora_A.weight"):
            b_name = name.replace(".lora_A.", ".lora_B.")
            product = state[b_name].double() @ state[name].double()
            deltas[name.removesuffix(".lora_A.weight")] = config["lora_alpha"] / root * product
    return deltas


def stack(members: Sequence[Member]) -> dict[str, Tensor]:
    """Delta weights of several clients: module to (K, out, in), float64."""
    each = [dense(state, config) for _, state, config, _ in members]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def cosines(deltas: Mapping[str, Tensor]) -> Tensor:
    """Pairwise cosines of the delta weights, (modules, K, K)."""
    tables = []
    for delta in deltas.values():
        flat = torch.nn.functional.normalize(delta.flatten(1), dim=1)
        tables.append(flat @ flat.T)
    return torch.stack(tables)


def blocks(members: Sequence[Member], kind: str) -> dict[str, Tensor]:
    """Mean and standard error over modules of all pairs, (pairs, 2), by sort of pair.

    Sorts: "benign" (benign with benign), "mixed" (benign with ``kind``), "bad" (within ``kind``).
    """
    tables = cosines(stack(members))
    error = tables.std(0) / math.sqrt(len(tables))
    pairs = torch.stack([tables.mean(0), error], dim=-1)
    kinds = [name.rsplit("-", 1)[0] for name, *_ in members]
    good = torch.tensor([one == "benign" for one in kinds])
    bad = torch.tensor([one == kind for one in kinds])
    upper = torch.ones_like(tables[0], dtype=torch.bool).triu(1)
    return {
        "benign": pairs[good[:, None] & good & upper],
        "mixed": pairs[good[:, None] & bad],
        "bad": pairs[bad[:, None] & bad & upper],
    }


def clearance(parts: Mapping[str, Tensor]) -> float:
    """Smallest benign pair minus largest mixed one, in standard errors: clear from 2 on."""
    low = parts["benign"][parts["benign"][:, 0].argmin()]
    high = parts["mixed"][parts["mixed"][:, 0].argmax()]
    return float((low[0] - high[0]) / torch.hypot(low[1], high[1]))


def shown(pairs: Tensor) -> str:
    """Mean, lowest and highest of pair similarities (pairs, 2), as text."""
    values = pairs[:, 0]
    return f"{values.mean():6.3f} ({values.min():6.3f} ..{values.max():6.3f})"


def table_lines(cache: Path, draws: int, listed: bool) -> Iterator[str]:
    """The cosine table of all pools in the cache, line by line.

    ``clear`` counts the cohorts of 10 benign and 4 other clients with clear blocks; the lowest
    benign and the highest mixed pair (with standard errors) are those of the whole pool.
    """
    yield (
        f"{'pool':14} {'kind':8} {'benign-benign':24} {'mixed':24} {'bad-bad':24} "
        f"{'lowest benign':15} {'highest mixed':15} clear"
    )
    for pool in sorted(cache.glob("*-s*")):
        if not (pool / "benign-00").exists():
            continue
        for kind in ("partial", "wrong", "random", "backdoor", "collude"):
            count = len(list(pool.glob(f"{kind}-[0-9]*")))
            if not count:
                continue
            total = len(list(pool.glob("benign-[0-9]*")))
            parts = blocks(cohort(pool, total, {kind: count}), kind)
            low = parts["benign"][parts["benign"][:, 0].argmin()].tolist()
            high = parts["mixed"][parts["mixed"][:, 0].argmax()].tolist()
            some = [cohort(pool, 10, {kind: min(4, count)}, draw=d) for d in range(draws)]
            clear = sum(clearance(blocks(one, kind)) >= 2 for one in some)
            yield (
                f"{pool.name:14} {kind:8} {shown(parts['benign'])} {shown(parts['mixed'])} "
                f"{shown(parts['bad'])} {low[0]:6.3f} +-{low[1]:6.3f} "
                f"{high[0]:6.3f} +-{high[1]:6.3f} {clear}/{draws}"
            )
            if listed:
                for sort, pairs in parts.items():
                    for mean, error in pairs.tolist():
                        yield f"    {sort:8} {mean:7.4f} +- {error:.4f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arches", nargs="+", default=copying.ARCHES, choices=copying.ARCHES)
    parser.add_argument("--inits", nargs="+", default=copying.INITS, choices=copying.INITS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--weak", type=int, nargs=2, metavar=("WORDS", "STEPS"))
    parser.add_argument("--draws", type=int, default=10, help="cohorts per row of the table")
    parser.add_argument("--pairs", action="store_true", help="list every pair of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    if options.command == "table":
        for line in table_lines(options.cache, options.draws, options.pairs):
            print(line, flush=True)
        return
    for seed in options.seeds:
        for arch in options.arches:
            for init in options.inits:
                start = time.perf_counter()
                count = train_pool(arch, init, seed, options.cache, options.weak)
                spent = time.perf_counter() - start
                print(f"{arch}-{init}-s{seed}: {count} trained, {spent:.0f} s", flush=True)


if __name__ == "__main__":
    main()
