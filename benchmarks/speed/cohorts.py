"""Cohorts of the size that language models have: files of random numbers with something shared.

    python -m benchmarks.speed.cohorts /tmp/cohort --model 1b --clients 16 [--ranks mixed]

Every linear layer of Llama-3.2-1B or Llama-3-8B has a pair in bf16. Honest clients share a few
directions of every module beside their own; one client in five shares nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARED = 4  # directions
MOVED = 0.1  # how far training moves a common first lora_A, of its norm
MIXED_RANKS = (8, 16, 32, 64)
# Every client has its own first lora_A; all have the same one; or, with their own, they share in
# the output directions only.
KINDS = ("own", "same-init", "output")


@dataclass(frozen=True)
class Model:
    """Widths of a decoder whose seven linear layers repeat."""

    layers: int
    hidden: int
    inner: int
    keys: int

    def modules(self, layers: int | None = None) -> Iterator[tuple[str, int, int]]:
        """(name, out_features, in_features)."""
        hidden, inner, keys = self.hidden, self.inner, self.keys
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for layer in range(layers or self.layers):
            for name, (out, in_) in shapes.items():
                yield f"model.layers.{layer}.{name}", out, in_


MODELS = {
    "1b": Model(layers=16, hidden=2048, inner=8192, keys=512),
    "8b": Model(layers=32, hidden=4096, inner=14336, keys=1024),
    "small": Model(layers=2, hidden=256, inner=512, keys=128),
}


def client_rank(client: int, ranks: str) -> int:
    """A number for all clients, or `mixed`: 8, 16, 32 and 64 in turn."""
    return MIXED_RANKS[client % len(MIXED_RANKS)] if ranks == "mixed" else int(ranks)


def make_cohort(
    folder: Path,
    model: str,
    clients: int,
    ranks: str = "16",
    layers: int | None = None,
    *,
    kind: str = "own",
) -> int:
    """Write a cohort, or keep the one that is there.

    Args:
        folder: gets one PEFT folder per client.
        ranks: a number, or "mixed".
        layers: of the model; default all.
        kind: one of KINDS.

    Returns:
        Bytes of all weights files.
    """
    done = folder.with_name(folder.name + ".complete")
    if not done.exists():
        each = [(folder / f"client-{k:03}", model, k, ranks, layers, kind)
                for k in range(clients)]  # fmt: skip
        if model == "small":
            for arguments in each:
                _write_client(*arguments)
        else:
            workers = ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_one_thread)
            with workers as pool:
                list(pool.map(_write_client, *zip(*each, strict=True)))
        done.write_text("complete\n")
    return sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write_client(
    path: Path, model: str, client: int, ranks: str, layers: int | None, kind: str
) -> None:
    rank = client_rank(client, ranks)
    tensors = {}
    honest = client % 5 != 4
    for number, (name, out, in_) in enumerate(MODELS[model].modules(layers)):
        common = torch.Generator().manual_seed(number)
        shared_A = torch.randn(SHARED, in_, generator=common) / in_**0.5
        shared_B = torch.randn(out, SHARED, generator=common) / out**0.5
        own = torch.Generator().manual_seed(1_000_003 * (client + 1) + number)
        lora_A = torch.randn(rank, in_, generator=own) / in_**0.5
        if kind == "same-init":
            first = torch.randn(max(rank, *MIXED_RANKS), in_, generator=common) / in_**0.5
            lora_A = first[:rank] + MOVED * lora_A
        lora_B = 0.5 * torch.randn(out, rank, generator=own) / out**0.5
        if kind == "output":
            lora_B[:, :SHARED] *= 3.0
            if honest:
                lora_B[:, :SHARED] = 3.0 * shared_B + 0.2 * lora_B[:, :SHARED]
        elif honest and kind == "same-init":
            lora_A[:SHARED] += 0.5 * shared_A
            lora_B[:, :SHARED] = shared_B + 0.2 * lora_B[:, :SHARED]
        elif honest:
            lora_A[:SHARED] = shared_A + 0.2 * lora_A[:SHARED]
            lora_B[:, :SHARED] = shared_B + 0.2 * lora_B[:, :SHARED]
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = lora_A.bfloat16()
        tensors[f"{prefix}.lora_B.weight"] = lora_B.bfloat16()
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": f"a/{model}",
        "lora_alpha": 2 * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({n.rsplit(".", 1)[1] for n, _, _ in MODELS[model].modules(1)}),
        "task_type": "CAUSAL_LM",
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="1b")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--ranks", default="16")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kind", choices=KINDS, default="own")
    given = parser.parse_args()
    size = make_cohort(
        given.folder, given.model, given.clients, given.ranks, given.layers, kind=given.kind
    )
    print(f"{given.clients} clients, {size / 1e6:,.0f} MB in {given.folder}")


if __name__ == "__main__":
    main()
