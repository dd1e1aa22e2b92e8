"""Makers of client files, good and hostile."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clair_cli.adapters.write import safetensors_bytes
from clair_cli.cohort.find import find_clients
from clair_cli.cohort.load import cohort_of, load_client
from clair_cli.cohort.model import Cohort
from clair_cli.formats.limits import Limits

PREFIX = "base_model.model."


def raw_file(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header (object, text or bytes), unchecked."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(
    begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32", **more: Any
) -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def pair(
    module: str = "layers.0.q_proj",
    rank: int = 2,
    shape: tuple[int, int] = (6, 8),
    prefix: str = PREFIX,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The two tensors of one module; `shape` is (out_features, in_features)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}{module}.lora_A.weight": torch.randn(rank, shape[1], generator=generator).to(
            dtype
        ),
        f"{prefix}{module}.lora_B.weight": torch.randn(shape[0], rank, generator=generator).to(
            dtype
        ),
    }


def config(r: int = 2, lora_alpha: float = 4, **more: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": r, "lora_alpha": lora_alpha, **more}


def client(
    folder: Path,
    name: str,
    tensors: dict[str, torch.Tensor] | bytes | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """A PEFT folder; `tensors` may be the bytes of the weights file."""
    path = folder / name
    path.mkdir(parents=True)
    data = (
        tensors
        if isinstance(tensors, bytes)
        else safetensors_bytes(pair() if tensors is None else tensors, {})
    )
    (path / "adapter_model.safetensors").write_bytes(data)
    (path / "adapter_config.json").write_text(json.dumps(config() if fields is None else fields))
    return path


def load_cohort(
    folder: Path,
    *,
    assume_alpha: float | str | None = None,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    checkpoint: str | int | None = None,
) -> Cohort:
    """A folder's clients, as a run reads them, but on one thread."""
    listing = find_clients(folder, exclude=exclude, limits=limits, checkpoint=checkpoint)
    load = partial(load_client, assume_alpha=assume_alpha, limits=limits)
    return cohort_of(listing, map(load, listing.candidates))


def rejected(cohort: Cohort) -> dict[str, str]:
    """Name to message of every rejected client."""
    return {entry.name: entry.message for entry in cohort.rejected}


def only_rejection(folder: Path, **options: Any) -> Any:
    """The one rejection of a cohort whose only other client is "good"."""
    cohort = load_cohort(folder, **options)
    assert [adapter.name for adapter in cohort.adapters] == ["good"]
    (entry,) = cohort.rejected
    return entry
