"""Small PEFT clients for fuzzing whole rounds: honest ones, their files, and a round's options."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
PREFIX = "base_model.model."
N_HONEST = 7
NAMES = tuple(f"model.layers.{i}.{name}" for i in (0, 1, 2) for name in ("q_proj", "up"))
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass
class Client:
    """One adapter as it will lie on the disk.

    Attributes:
        A, B: factors by module, float64 numbers that are rounded to `dtype` when written.
        entry: name in the clients' folder: of a folder, or of a file that ends in .safetensors.
        text: written for the config's JSON, if set.
        shapes: tensor shapes to claim instead of the matrices' own, by tensor name.
        more: further tensors by their whole name.
        cut: bytes that are missing at the end of the weights file.
    """

    A: dict[str, Array]
    B: dict[str, Array]
    config: dict[str, Any]
    entry: bytes
    dtype: str = "F32"
    text: str | None = None
    shapes: dict[str, list[int]] = field(default_factory=dict)
    more: dict[str, Array] = field(default_factory=dict)
    cut: int = 0

    def scale(self, module: str) -> float:
        """alpha / rank or alpha / sqrt(rank), as PEFT looks it up; NaN where it is no number."""
        rank, alpha = len(self.A[module]), self.config.get("lora_alpha")
        for key, value in (self.config.get("alpha_pattern") or {}).items():
            with contextlib.suppress(re.error):
                if re.match(rf"(.*\.)?({key})$", module):
                    alpha = value
                    break
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not rank:
            return math.nan
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


@dataclass
class Round:
    """What one run of the program is given.

    Attributes:
        clients: seven honest ones, and the hostile one at the end.
        previous: what all started from, or None.
        hostile_previous: whether that was made hostile too.
        options: keyword arguments of `clair_cli.merge`.
        words: what was done to make it hostile.
    """

    clients: list[Client]
    previous: Client | None
    hostile_previous: bool
    options: dict[str, Any]
    words: list[str]


def rounded(values: Array, dtype: str) -> Array:
    """Numbers as the file's dtype holds them, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "BF16":
            return np.asarray(values, np.float64).astype(NUMPY[dtype]).astype(np.float64)
        return (bfloat16(values).astype("<u4") << 16).view("<f4").astype(np.float64)


def bfloat16(values: Array) -> Array:
    """Bits of the nearest bfloat16 numbers, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = np.ascontiguousarray(values, dtype="<f4")
    bits = single.view("<u4").astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & 1)) >> np.uint64(16)).astype("<u2")
    return np.where(np.isfinite(single), nearest, (bits >> np.uint64(16)).astype("<u2"))


def to_bytes(values: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        return bfloat16(values).astype("<u2").tobytes()
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, dtype=np.float64).astype(NUMPY[dtype]).tobytes()


def write_client(folder: Path, client: Client) -> int:
    """Write one client; the bytes that it takes.

    A file has its config in the header; a folder has it beside the weights.
    """
    tensors = {f"{PREFIX}{m}.lora_{side}.weight": pair[m]
               for side, pair in (("A", client.A), ("B", client.B)) for m in pair}  # fmt: skip
    tensors |= client.more
    text = json.dumps(client.config) if client.text is None else client.text
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), client.entry)))
    inside = client.entry.endswith(b".safetensors")
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", **({"lora_adapter_metadata": text} if inside else {})}
    }
    body = bytearray()
    for name, values in tensors.items():
        data = to_bytes(values, client.dtype)
        shape = client.shapes.get(name, list(values.shape))
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": client.dtype, "shape": shape, "data_offsets": offsets}
        body += data
    head = json.dumps(header).encode("utf-8", "surrogatepass")
    weights = struct.pack("<Q", len(head)) + head + body
    weights = weights[: len(weights) - client.cut]
    if inside:
        path.write_bytes(weights)
        return len(weights)
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(weights)
    (path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    return len(weights) + len(text)


def write_round(folder: Path, made: Round) -> int:
    """Write `clients` and, if there is one, `previous` into a new folder; the hostile client's
    bytes."""
    (folder / "clients").mkdir(parents=True)
    sizes = [write_client(folder / "clients", client) for client in made.clients]
    if made.previous is not None:
        sizes[-1] += write_client(folder, made.previous)
    return sizes[-1]


def honest_round(rng: np.random.Generator) -> Round:
    """Eight honest clients that share a part of every module: D_k = a D_0 + b N_k."""
    modules = list(NAMES[: int(rng.integers(4, 7))])
    shapes = {m: tuple(int(n) for n in rng.integers(16, 33, 2)) for m in modules}
    rank, alpha = int(rng.integers(2, 5)), float(rng.choice([1, 4, 8, 16]))
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM",
        "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "up"], "bias": "none",
    }  # fmt: skip
    dtype = str(rng.choice(["F32", "F32", "F32", "F64", "BF16", "F16"]))
    layout = b"" if rng.random() < 0.7 else b".safetensors"
    previous = None
    if rng.random() < 0.3:
        common = {m: low_rank(shapes[m], rank, rng) for m in modules}
        previous = factored(common, rank, {**config, "lora_alpha": rank}, b"previous", dtype, rng)
    shared = {m: low_rank(shapes[m], rank, rng) for m in modules}
    clients = []
    for k in range(N_HONEST + 1):
        size = rng.uniform(0.9, 1.1)
        own = {m: size * (0.6 * shared[m] + 0.8 * low_rank(shapes[m], rank, rng)) for m in modules}
        client = factored(own, rank, config, b"c%d" % k + layout, dtype, rng)
        clients.append(client if previous is None else on_top(client, previous))
    return Round(clients, previous, False, options(rng), [])


def low_rank(shape: tuple[int, ...], rank: int, rng: np.random.Generator) -> Array:
    """A matrix of norm one and this rank."""
    delta = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return delta / np.linalg.norm(delta)


def factored(
    deltas: dict[str, Array],
    rank: int,
    config: dict[str, Any],
    entry: bytes,
    dtype: str,
    rng: np.random.Generator,
) -> Client:
    """Factors of the leading part of each delta weight, in a random gauge."""
    A, B = {}, {}
    for module, delta in deltas.items():
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        gauge = rng.standard_normal((rank, rank)) + 3 * np.eye(rank)
        while np.linalg.cond(gauge) > 100:  # in such a gauge an honest client's components cancel
            gauge = rng.standard_normal((rank, rank)) + 3 * np.eye(rank)
        scale = config["lora_alpha"] / rank
        B[module] = (left[:, :rank] * values[:rank]) @ gauge / scale
        A[module] = np.linalg.solve(gauge, right[:rank])
    return Client(A, B, deepcopy(config), entry, dtype)


def on_top(client: Client, previous: Client) -> Client:
    """The client's delta weight added to the previous adapter's, as further components."""
    rank = client.config["r"] + previous.config["r"]
    scale = client.config["lora_alpha"] / rank
    for m, own in client.A.items():
        grown = client.B[m] * client.scale(m) / scale
        client.A[m] = np.vstack([previous.A[m], own])
        client.B[m] = np.hstack([previous.B[m] * previous.scale(m) / scale, grown])
    client.config["r"] = rank
    return client


def options(rng: np.random.Generator) -> dict[str, Any]:
    """How the round is merged; mostly so that what is written is all but exact."""
    chosen: dict[str, Any] = {
        "rank": _pick(rng, ["full"] * 6 + ["auto", "same", 4, 64]),
        "dtype": _pick(rng, ["float32"] * 6 + ["auto", "auto", "bfloat16", "float16"]),
        "modules": _pick(rng, ["common"] * 5 + ["union"] * 2 + ["intersection", "same"]),
        "keep_alpha": bool(rng.random() < 0.2),
        "allow_undetermined": bool(rng.random() < 0.2),
        "minority": "merge",  # what is checked is the weighted sum of whole delta weights
        "fail_on": _pick(rng, ["never"] * 9 + ["contaminated"]),
        "threads": int(rng.integers(1, 3)),
    }
    return chosen


def _pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]
