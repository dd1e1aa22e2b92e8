"""Small cohorts that behave like trained ones, on disk or in memory, and an independent reader.

A client's update in each module is a share of a common one plus its own: D_k = a D_0 + b N_k,
every part of low rank, so that two honest clients have a cosine of about 0.3. All of it, the
reader too, is numpy and the standard library, apart from the package under test.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import typer.testing

from clair_cli.cli import app as cli
from clair_cli.remark import Remark
from clair_cli.report.schema import report_schema
from tests.schema import follows

Array = np.ndarray
Deltas = dict[str, Array]

# Module to (out, in): three shapes, none square, six modules.
MODULES = {
    f"model.layers.{layer}.{name}": shape
    for layer in (0, 1)
    for name, shape in (("attn.q_proj", (24, 16)), ("mlp.up", (40, 16)), ("mlp.down", (16, 40)))
}
PREFIX = "base_model.model."
SCHEMA = report_schema()


@dataclass(frozen=True)
class Client:
    """One adapter: factors per module, and the config that gives their scale."""

    A: Mapping[str, Array]
    B: Mapping[str, Array]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """`adapter_config.json` as PEFT would write it."""
        rank = next(iter(self.A.values())).shape[0] if self.A else 1
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": "org/base",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": ["down", "q_proj", "up"],
            "bias": "none",
            **self.config,
        }

    def deltas(self) -> Deltas:
        return {m: scale_of(self.fields, m, a.shape[0]) * self.B[m] @ a for m, a in self.A.items()}


Clients = dict[str, Client]


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank or alpha / sqrt(rank), `alpha_pattern` looked up as PEFT does it."""
    alpha = config["lora_alpha"]
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# Making clients


def orthonormal(rows: int, columns: int, rng: np.random.Generator) -> Array:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def low_rank(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> Array:
    """Norm one, spectrum 1, 0.7, 0.49..."""
    left, right = orthonormal(shape[0], rank, rng), orthonormal(shape[1], rank, rng)
    delta = left * 0.7 ** np.arange(rank) @ right.T
    return delta / np.linalg.norm(delta)


def random_deltas(rng: np.random.Generator, rank: int = 3, norm: float = 1.0) -> Deltas:
    return {m: norm * low_rank(shape, rank, rng) for m, shape in MODULES.items()}


def factored(
    deltas: Mapping[str, Array], rank: int, config: Mapping[str, Any] | None = None, seed: int = 0
) -> Client:
    """Exact factors of deltas of at most that rank, in a random gauge."""
    rng = np.random.default_rng(1000 + seed)
    config = {"r": rank, "lora_alpha": 2 * rank, **(config or {})}
    A, B = {}, {}
    for module, delta in deltas.items():
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        gauge = rng.standard_normal((rank, rank)) + 3 * np.eye(rank)
        scale = scale_of(config, module, rank)
        B[module] = (left[:, :rank] * values[:rank]) @ gauge / scale
        A[module] = np.linalg.solve(gauge, right[:rank])
    return Client(A, B, config)


def honest_deltas(
    n_clients: int, *, cosine: float = 0.3, seed: int = 0, common: Deltas | None = None
) -> list[Deltas]:
    """Updates of honest clients, their norms within ten percent of one another."""
    rng = np.random.default_rng(seed)
    common = random_deltas(rng) if common is None else common
    result = []
    for _ in range(n_clients):
        size = rng.uniform(0.95, 1.05)
        own = random_deltas(rng)
        a, b = size * cosine**0.5, size * (1 - cosine) ** 0.5
        result.append({m: a * common[m] + b * own[m] for m in MODULES})
    return result


def honest(n_clients: int = 7, *, cosine: float = 0.3, seed: int = 0) -> Clients:
    """c0, c1...: honest clients of rank 6."""
    return dict(_honest(n_clients, cosine, seed))


@functools.cache
def _honest(n_clients: int, cosine: float, seed: int) -> Clients:
    deltas = honest_deltas(n_clients, cosine=cosine, seed=seed)
    return {f"c{k}": factored(d, 6, seed=k) for k, d in enumerate(deltas)}


def unrelated(seed: int = 77) -> Client:
    return factored(random_deltas(np.random.default_rng(seed), rank=6), 6, seed=seed)


def colluders(n_clients: int, seed: int = 55) -> list[Client]:
    """Clients that agree with one another as honest ones do, on something else."""
    return [factored(d, 6, seed=k) for k, d in enumerate(honest_deltas(n_clients, seed=seed))]


def scaled(client: Client, factor: float) -> Client:
    """`factor` times the update, in the factors."""
    return replace(client, B={m: factor * b for m, b in client.B.items()})


def regauged(client: Client, seed: int = 5) -> Client:
    """The same update in other factors."""
    rng = np.random.default_rng(seed)
    A, B = {}, {}
    for module, a in client.A.items():
        gauge = rng.standard_normal((len(a), len(a))) + 3 * np.eye(len(a))
        A[module], B[module] = np.linalg.solve(gauge, a), client.B[module] @ gauge
    return replace(client, A=A, B=B)


def without(client: Client, modules: Iterable[str]) -> Client:
    gone = set(modules)
    return replace(
        client,
        A={m: a for m, a in client.A.items() if m not in gone},
        B={m: b for m, b in client.B.items() if m not in gone},
    )


def with_nan(client: Client) -> Client:
    module = next(iter(client.A))
    bad = client.A[module].copy()
    bad[1, 2] = np.nan
    return replace(client, A={**client.A, module: bad})


def wider(client: Client) -> Client:
    """One module with two more inputs than everybody else has."""
    module = next(iter(client.A))
    a = client.A[module]
    return replace(client, A={**client.A, module: np.hstack([a, a[:, :2]])})


# Arithmetic on dense updates


def mean(deltas: Sequence[Deltas], weights: Sequence[float] | None = None) -> Deltas:
    """Weighted mean; a module that somebody lacks is a zero there."""
    weights = [1.0] * len(deltas) if weights is None else weights
    total = sum(weights)
    names = sorted({m for d in deltas for m in d})
    result = {}
    for m in names:
        parts = [w / total * d[m] for w, d in zip(weights, deltas, strict=True) if m in d]
        result[m] = np.sum(parts, axis=0)
    return result


def plus(left: Deltas, right: Deltas) -> Deltas:
    return {m: left.get(m, 0.0) + right.get(m, 0.0) for m in {**left, **right}}


def on_top(clients: Clients, before: Deltas) -> Clients:
    """The clients as they are if they started from an adapter, whose delta weights are added."""
    return {
        name: factored(plus(client.deltas(), before), 16, seed=k)
        for k, (name, client) in enumerate(clients.items())
    }


def relative(found: Deltas, wanted: Deltas) -> float:
    """Norm of the difference over the norm of `wanted`; the same modules in both."""
    assert sorted(found) == sorted(wanted)
    off = math.sqrt(sum(np.linalg.norm(found[m] - wanted[m]) ** 2 for m in wanted))
    return off / math.sqrt(sum(np.linalg.norm(d) ** 2 for d in wanted.values()))


# Writing clients


def to_bits(array: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(
        array, dtype={"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]
    ).tobytes()


def safetensors(tensors: Mapping[str, Array], dtype: str, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in tensors.items():
        bits = to_bits(array, dtype)
        offsets = [len(data), len(data) + len(bits)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += bits
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def peft_names(side: str, module: str) -> str:
    return f"{PREFIX}{module}.lora_{side}.weight"


def adapter_names(side: str, module: str) -> str:
    return f"{PREFIX}{module}.lora_{side}.default.weight"


def bare_names(side: str, module: str) -> str:
    return f"{module}.lora_{side}.weight"


Names = Callable[[str, str], str]


def client_bytes(
    client: Client,
    dtype: str = "F32",
    names: Names = peft_names,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    tensors = {names("A", m): a for m, a in client.A.items()}
    tensors |= {names("B", m): b for m, b in client.B.items()}
    return safetensors(tensors, dtype, {"format": "pt"} if metadata is None else metadata)


def save_peft(folder: Path, client: Client, dtype: str = "F32", names: Names = peft_names) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(client_bytes(client, dtype, names))
    (folder / "adapter_config.json").write_text(json.dumps(client.fields))
    return folder


def save(
    folder: Path,
    clients: Mapping[str, Client],
    layout: str = "peft",
    dtype: str = "F32",
    names: Names = peft_names,
) -> Path:
    """Write a cohort.

    Args:
        layout: "peft" (a folder each), "file" (config beside), "header" (config inside), or
            "mixed" (the three in turn).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for k, (name, client) in enumerate(clients.items()):
        kind = ("peft", "file", "header")[k % 3] if layout == "mixed" else layout
        if kind == "peft":
            save_peft(folder / name, client, dtype, names)
            continue
        text = json.dumps(client.fields)
        inside = {"format": "pt", "lora_adapter_metadata": text}
        data = client_bytes(client, dtype, names, inside if kind == "header" else None)
        (folder / f"{name}.safetensors").write_bytes(data)
        if kind == "file":
            (folder / f"{name}.json").write_text(text)
    return folder


# Reading results, without the package


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body, tensors = data[8 + size :], {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        raw = body[start:end]
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[entry["dtype"]])
        tensors[name] = array.astype(np.float64).reshape(entry["shape"])
    return tensors, metadata


def dense(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Deltas:
    """scaling * B @ A of every module, from tensors and config alone."""
    found = {}
    for name, a in tensors.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_A(?:\.\w+)?\.weight", name)
        if match:
            a, b = np.asarray(a, np.float64), tensors[name.replace(".lora_A.", ".lora_B.")]
            scale = scale_of(config, match[1], len(a))
            found[match[1]] = scale * np.asarray(b, np.float64) @ a
    assert 2 * len(found) == len(tensors)
    return found


def read_config(path: Path) -> dict[str, Any]:
    if path.is_dir():
        config: dict[str, Any] = json.loads((path / "adapter_config.json").read_text())
        return config
    return json.loads(read_safetensors(path)[1]["lora_adapter_metadata"])  # type: ignore[no-any-return]


def read_dense(path: Path) -> Deltas:
    """The dense update of a merged file or a PEFT folder."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    return dense(read_safetensors(file)[0], read_config(path))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def check_report(text: str) -> dict[str, Any]:
    """Strict JSON that follows the schema."""
    report: dict[str, Any] = json.loads(text, parse_constant=_no_constant)
    _check_schema(text)
    return report


FOLLOWS = follows(SCHEMA)


@functools.lru_cache(maxsize=64)
def _check_schema(text: str) -> None:
    """Once a text: a report is read often."""
    document = json.loads(text)
    if not FOLLOWS(document):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def read_report(path: Path) -> dict[str, Any]:
    return check_report(path.read_text(encoding="utf-8"))


def verdicts(report: Mapping[str, Any]) -> dict[str, str]:
    return {c["name"]: c["verdict"] for c in report["clients"]}


def codes(report: Mapping[str, Any], name: str) -> set[str]:
    (client,) = (c for c in report["clients"] if c["name"] == name)
    return {reason["code"] for reason in client["reasons"]}


def reasons(report: Mapping[str, Any], name: str) -> str:
    (client,) = (c for c in report["clients"] if c["name"] == name)
    return "; ".join(reason["text"] for reason in client["reasons"])


def left_out(report: Mapping[str, Any]) -> set[str]:
    return {name for name, verdict in verdicts(report).items() if verdict == "contaminated"}


# Running the command line


def clair(*args: object) -> Any:
    """The command in this process; an exception that it lets out fails the test."""
    return typer.testing.CliRunner().invoke(
        cli.app, [str(arg) for arg in args], catch_exceptions=False, prog_name="clair"
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(remarks: Iterable[Remark | Mapping[str, str]]) -> tuple[str, ...]:
    """The sentences of remarks, as Python has them or as a report file does."""
    return tuple(r.text if isinstance(r, Remark) else r["text"] for r in remarks)
