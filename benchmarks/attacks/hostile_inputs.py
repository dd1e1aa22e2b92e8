"""The inputs of hostile.py: an honest round on the disk, and ways to replace its eighth client.

Every maker writes into the clients' folder. Files are made with numpy and the standard library,
from fixed seeds.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Pairs = dict[str, tuple[Array, Array]]
N_CLIENTS, N_MODULES, WIDTH, RANK, ALPHA = 8, 24, 64, 8, 16
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
MODULES = tuple(f"model.layers.{i // 4}.self_attn.{PARTS[i % 4]}" for i in range(N_MODULES))
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FIELDS: dict[str, Any] = {
    "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(PARTS),
    "bias": "none",
}  # fmt: skip
HOSTILE = "client-7"
LONG = 20_000_000


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        make: writes it in place of the eighth client of an honest round.
        options: further ones of `clair merge`; {folder} is the round's folder.
        files: whether all are plain files instead of PEFT folders.
        needs: bytes of free disk below which the case is skipped.
    """

    make: Callable[[Path], object]
    options: tuple[str, ...] = ()
    files: bool = False
    needs: int = 0


def factors(k: int) -> Pairs:
    """(A, B) of client k: a share of a common delta weight, and its own."""
    common, own = np.random.default_rng(1), np.random.default_rng(1000 + k)
    found = {}
    for module in MODULES:
        half = RANK // 2
        A0, A1 = (g.standard_normal((half, WIDTH)) / WIDTH**0.5 for g in (common, own))
        B0, B1 = (g.standard_normal((WIDTH, half)) / WIDTH**0.5 for g in (common, own))
        found[module] = np.vstack([A0, A1]), np.hstack([B0, B1])
    return found


def write_file(path: Path, pairs: Mapping[str, tuple[Array, Array]], dtype: str = "F32",
               adapters: tuple[str, ...] = ("",)) -> None:  # fmt: skip
    """A weights file; an adapter's name stands behind lora_A and lora_B, module by module in
    turn."""
    kind = {"F64": "<f8", "F32": "<f4"}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, parts = 0, []
    for i, (module, pair) in enumerate(pairs.items()):
        for side, values in zip("AB", pair, strict=True):
            data = np.ascontiguousarray(values, kind).tobytes()
            name = f"base_model.model.{module}.lora_{side}{adapters[i % len(adapters)]}.weight"
            header[name] = entry(dtype, values.shape, position, len(data))
            position += len(data)
            parts.append(data)
    path.write_bytes(b"".join([head(header), *parts]))


def entry(dtype: str, shape: tuple[int, ...], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def head(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text


def write_client(folder: Path, name: str, pairs: Pairs, dtype: str = "F32", text: str = "",
                 adapters: tuple[str, ...] = ("",), **fields: Any) -> Path:  # fmt: skip
    """A PEFT folder, in place of one that may be there."""
    path = folder / name
    path.mkdir(exist_ok=True)
    write_file(path / WEIGHTS, pairs, dtype, adapters)
    made = json.dumps({**FIELDS, **fields}, separators=(",", ":"))
    (path / CONFIG).write_text(text or made)
    return path


def honest_round(folder: Path, *, files: bool = False) -> None:
    """Eight honest clients, as PEFT folders or as files that say no scale."""
    folder.mkdir(parents=True)
    for k in range(N_CLIENTS):
        if files:
            write_file(folder / f"client-{k}.safetensors", factors(k))
        else:
            write_client(folder, f"client-{k}", factors(k))


def norm_of_one() -> float:
    """A module's typical honest norm."""
    A, B = factors(0)[MODULES[0]]
    return float(np.linalg.norm(B @ A))


def cancelling(s: float, d: float, dtype: str, folder: Path) -> None:
    """In one module components of s and -s (+ d) with one row of A."""
    pairs = factors(7)
    A, B = pairs[MODULES[0]]
    A[1] = A[0]
    B[:, 0], B[:, 1] = s, -s + d
    write_client(folder, HOSTILE, pairs, dtype)


def cancelling_previous(folder: Path) -> None:
    """The adapter that all are said to have started from has the pair, in a module in which the
    eighth client's delta weight is 1,000 times as large as the others'."""
    pairs = factors(7)
    A, B = pairs[MODULES[0]]
    pairs[MODULES[0]] = A, 1000 * B
    write_client(folder, HOSTILE, pairs)
    before = {m: (A, 0.1 * B) for m, (A, B) in factors(200).items()}
    A, B = before[MODULES[0]]
    B[:, 0], B[:, 1], A[1] = 1e16, -1e16, A[0]
    write_client(folder.parent, "previous", before, "F64")


def gauge(power: float, modules: int, folder: Path) -> None:
    """The honest eighth client with exponents that no training gives."""
    pairs = factors(7)
    for m in MODULES[:modules]:
        A, B = pairs[m]
        pairs[m] = A / 10.0**power, B * 10.0**power
    write_client(folder, HOSTILE, pairs, "F64")


def extra_modules(count: int, folder: Path) -> None:
    """Modules of 1 x 1 that nobody else has."""
    one = np.full((1, 1), 0.1)
    more = {f"m{i}": (one, one) for i in range(count)}
    ranks = dict.fromkeys([r"m\d+"], 1)
    write_client(folder, HOSTILE, {**factors(7), **more}, rank_pattern=ranks)


def long_axis(contaminated: bool, folder: Path) -> None:
    """One more module whose axis is long: zeros that take no room on the disk."""
    pairs = factors(7)
    if contaminated:
        pairs = {m: (A[::-1].copy(), -B) for m, (A, B) in factors(8).items()}
    path = write_client(folder, HOSTILE, pairs, rank_pattern={"long": 1}) / WEIGHTS
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header["base_model.model.long.lora_A.weight"] = entry("F32", (1, LONG), len(body), 4 * LONG)
    header["base_model.model.long.lora_B.weight"] = entry("F32", (1, 1), len(body) + 4 * LONG, 4)
    start = head(header)
    path.write_bytes(start + body)
    os.truncate(path, len(start) + len(body) + 4 * LONG + 4)


def lm_head(folder: Path) -> None:
    """One more module, of twice an honest module's norm."""
    rng = np.random.default_rng(5)
    A, B = rng.standard_normal((RANK, WIDTH)), rng.standard_normal((WIDTH, RANK))
    B *= 2 * norm_of_one() / np.linalg.norm(B @ A)
    write_client(folder, HOSTILE, {**factors(7), "lm_head": (A, B)})


def one_module(clients: int, folder: Path) -> None:
    """Contaminated clients with one module each."""
    for k in range(N_CLIENTS - clients, N_CLIENTS):
        A, B = factors(100 + k)[MODULES[k]]
        write_client(folder, f"client-{k}", {MODULES[k]: (A, -B)})


def high_rank(count: int, folder: Path) -> None:
    """Rank 1024 in layers of 1 x 1."""
    A = np.full((1, 1024), 1 / 32)
    more = {f"m{i}": (A.T, A) for i in range(count)}
    write_client(folder, HOSTILE, {**factors(7), **more}, rank_pattern={r"m\d+": 1024})


def patterns(folder: Path) -> None:
    """1,000 names with many dots, and 4,095 plain keys that fit none of them."""
    row = np.full((1, RANK), 0.1)
    more = {"a." * 230 + f"m{i}": (row.T, row) for i in range(1000)}
    ranks = {f"k{i}": 1 for i in range(4095)}
    write_client(folder, HOSTILE, {**factors(7), **more}, rank_pattern=ranks)


def nested(depth: int, folder: Path) -> None:
    """A config with one field that is lists in lists."""
    text = json.dumps({**FIELDS, "runtime_config": None})
    deep = "[" * depth + "]" * depth
    write_client(folder, HOSTILE, factors(7), text=text.replace("null", deep))


def folder_named(name: str, folder: Path) -> None:
    """Honest files beside a client's folder that is called as a config is."""
    (folder / f"{HOSTILE}.safetensors").unlink()
    write_client(folder, name, factors(7))


def pickles(folder: Path) -> None:
    """A client's folder with 20,000 files that are never read."""
    path = write_client(folder, HOSTILE, factors(7))
    for i in range(20_000):
        (path / f"{i}.bin").touch()


def many_adapters(folder: Path) -> None:
    """Each of 9,990 modules is of an adapter of its own, with a long name."""
    one = np.full((1, 1), 0.1)
    pairs = {f"m{i}": (one, one) for i in range(9_990)}
    names = tuple(f".{'x' * 200}{i}" for i in range(len(pairs)))
    write_client(folder, HOSTILE, pairs, adapters=names, r=1)


def fields(**changes: Any) -> Callable[[Path], object]:
    """The honest eighth client with other fields in its config."""
    return lambda folder: write_client(folder, HOSTILE, factors(7), **changes)


def many_targets(folder: Path) -> object:
    targets = [np.base_repr(i, 36) for i in range(130_000)]
    return fields(target_modules=targets)(folder)


CASES: dict[str, Case] = {
    "cancelling pair, float64, s = 1e16": Case(partial(cancelling, 1e16, 0.0, "F64")),
    "cancelling pair, float64, s = 1e16, d = 1000": Case(partial(cancelling, 1e16, 1e3, "F64")),
    "cancelling pair, float32, s = 1e20": Case(partial(cancelling, 1e20, 0.0, "F32")),
    "cancelling pair in --previous": Case(
        cancelling_previous, ("--previous", "{folder}/previous")
    ),
    "gauge 1e155, float64, one module": Case(partial(gauge, 155, 1)),
    "gauge 1e170, float64, all modules": Case(partial(gauge, 170, N_MODULES)),
    "9,900 extra modules of 1 x 1": Case(partial(extra_modules, 9900)),
    "one module with an axis of 20,000,000 zeros": Case(
        partial(long_axis, False), needs=6_000_000_000
    ),
    "the same, contaminated": Case(partial(long_axis, True), needs=6_000_000_000),
    "lm_head of twice the honest norm": Case(lm_head),
    "one module, --modules intersection": Case(
        partial(one_module, 1), ("--modules", "intersection")
    ),
    "two such": Case(partial(one_module, 2), ("--modules", "intersection")),
    "rank 1024 in 60 layers of 1 x 1": Case(partial(high_rank, 60)),
    "rank 1024 in 9,900 layers of 1 x 1": Case(partial(high_rank, 9900)),
    "1,000 dotted names x 4,095 pattern keys": Case(patterns),
    "config nested 977 deep": Case(partial(nested, 977)),
    "config with a revision, a base and a task": Case(
        fields(revision="evil", base_model_name_or_path="evil/base", task_type="SEQ_CLS")
    ),
    "config with 130,000 target_modules": Case(many_targets),
    "folder called adapter_config.json": Case(
        partial(folder_named, CONFIG), ("--assume-alpha", "16"), files=True
    ),
    "folder called client-0.json": Case(
        partial(folder_named, "client-0.json"), ("--assume-alpha", "16"), files=True
    ),
    "20,000 .bin files": Case(pickles),
    "9,990 adapters in one file": Case(many_adapters),
}  # fmt: skip
