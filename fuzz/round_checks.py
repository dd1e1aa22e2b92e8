"""What must hold after every round, whatever one client sent: the oracle and the checks.

The oracle is numpy and the standard library only. It knows the clients from the numbers that were
written to their files, and the merged adapter from the file that the round wrote.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.small_clients import N_HONEST, NUMPY, Array, Client, Round, rounded

Deltas = dict[str, Array]
EXITS = (0, 3, 4, 5)
# Above this many times its delta weight, a sum of components needs exact arithmetic.
CANCELS = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing that must not be: its kind in a word, and the numbers."""

    kind: str
    words: str


def exact_product(B: Array, A: Array) -> Array:
    """B @ A with every entry correctly rounded, whatever cancels in it.

    Components are brought to a magnitude of one by powers of two, each product is split into its
    rounded value and its error (Dekker), and `math.fsum` adds them.
    """
    powers_A = np.frexp(np.abs(A).max(1, initial=0.0))[1]
    powers_B = np.frexp(np.abs(B).max(0, initial=0.0))[1]
    x, y = np.ldexp(B, -powers_B).T[:, :, None], np.ldexp(A, -powers_A[:, None])[:, None, :]
    high = x * y
    (x1, x2), (y1, y2) = _halves(x), _halves(y)
    low = x2 * y2 - (((high - x1 * y1) - x2 * y1) - x1 * y2)
    powers = powers_A + powers_B
    largest = int(powers.max(initial=0))
    terms = np.concatenate([np.ldexp(part, (powers - largest)[:, None, None])
                            for part in (high, low)])  # fmt: skip
    sums = [math.fsum(column) for column in terms.reshape(len(terms), -1).T.tolist()]
    with np.errstate(over="ignore"):
        return np.ldexp(np.array(sums).reshape(len(B), A.shape[1]), largest)


def _halves(values: Array) -> tuple[Array, Array]:
    """Two parts of at most 26 bits each that add up to the values."""
    lifted = values * 134217729.0
    high = lifted - (lifted - values)
    return high, values - high


def norm(values: Array) -> float:
    """Frobenius norm that does not overflow on the way; NaN or infinite if an entry is."""
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest) or largest == 0.0:
        return largest
    return largest * float(np.linalg.norm(values / largest))


def delta_of(client: Client, module: str) -> Array | None:
    """The delta weight that one module's file contents stand for; None if they are no matrices
    that can be multiplied, or not finite."""
    A, B = (rounded(side[module], client.dtype) for side in (client.A, client.B))
    scale = client.scale(module)
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or not math.isfinite(scale):
        return None
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        return None
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        plain = B @ A
        sizes = np.linalg.norm(B, axis=0) * np.linalg.norm(A, axis=1)
        if not np.isfinite(plain).all() or not norm(sizes) <= CANCELS * norm(plain):
            plain = exact_product(B, A)
        return scale * plain


def deltas_of(client: Client) -> dict[str, Array | None]:
    return {module: delta_of(client, module) for module in client.A}


def read_written(path: Path) -> Deltas:
    """Delta weights of a file that clair wrote, from its tensors and the config in its header."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    config = json.loads(header.pop("__metadata__")["lora_adapter_metadata"])
    body, tensors = data[8 + size :], {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(body[begin:end], NUMPY[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        tensors[name] = values.astype(np.float64).reshape(entry["shape"])
    found = {}
    for name, A in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", name)
        if match:
            written = Client({match[1]: A}, {}, config, b"")
            B = tensors[name.replace(".lora_A.", ".lora_B.")]
            found[match[1]] = written.scale(match[1]) * B @ A
    assert 2 * len(found) == len(tensors), "a tensor without its pair"
    return found


def reported(report: Any, made: Round, folder: Path) -> dict[int, Any]:
    """The report's clients by their place in the round: honest ones are told by their paths, or by
    their names where the path is a config's; the hostile one is whoever is left."""
    entries = {os.fsdecode(c.entry): k for k, c in enumerate(made.clients[:N_HONEST])}
    names = {entry.removesuffix(".safetensors"): k for entry, k in entries.items()}
    found, rest = {}, []
    for client in report.clients:
        place = Path(client.path)
        within = place.relative_to(folder).parts if place.is_relative_to(folder) else ("",)
        if within[0] in entries:
            found[entries[within[0]]] = client
        else:
            rest.append(client)
    for client in rest:
        k = names.get(client.name, N_HONEST)
        found[N_HONEST if k in found else k] = client
    return found


def check_end(made: Round, report: Any, folder: Path) -> Iterator[Finding]:
    """The exit code, and that nobody honest is rejected and the hostile client blocks no round."""
    code = report.exit_code
    if code not in EXITS:
        yield Finding("exit", f"exit code {code}")
    if made.hostile_previous:
        return
    if code == 4:
        yield Finding("refused", f"seven honest clients refused: {report.cohort.outcome_text}")
    if code == 3 and made.options["fail_on"] == "never":
        yield Finding("exit", "exit code 3 with --fail-on never")
    for remark in report.warnings:
        if remark.class_ == "blocking":
            yield Finding("blocked", remark.text)
    clients = reported(report, made, folder)
    for k in range(N_HONEST):
        if k not in clients:
            yield Finding("lost", f"honest client {k} is not in the report")
        elif clients[k].verdict == "rejected":
            yield Finding("rejected", f"honest client {k}: {clients[k].reasons[0].text[:200]}")


class Oracle:
    """Delta weights as updates on top of the previous adapter, and their exact sums.

    Args:
        deltas: of each client of the round, by module.
        before: of the previous adapter.
    """

    def __init__(
        self,
        report: Any,
        clients: Mapping[int, Any],
        deltas: Mapping[int, Mapping[str, Array | None]],
        before: Mapping[str, Array | None],
    ) -> None:
        self.report, self.clients, self.before = report, clients, before
        self.deltas = deltas
        self.comparable = [k for k, c in clients.items() if c.verdict != "rejected"]
        self.shapes = {m.name: m.shape for m in report.modules}

    def previous(self, module: str) -> Array:
        found = self.before.get(module)
        return np.zeros(self.shapes[module]) if found is None else found

    def update(self, k: int, module: str) -> Array:
        """Of client k; zero where it lacks the module."""
        found = self.deltas[k].get(module)
        return np.zeros(self.shapes[module]) if found is None else found - self.previous(module)

    def mean(self, module: str, weights: Mapping[int, float]) -> Array:
        sums = np.zeros(self.shapes[module])
        for k, weight in weights.items():
            sums = sums + weight * self.update(k, module)
        return sums

    def merged(self, module: str, weights: Mapping[int, float]) -> Array:
        """What is added to the previous adapter: nothing where too few of the merged have it."""
        having = [k for k, w in weights.items() if w > 0 and self.deltas[k].get(module) is not None]
        n_merged = sum(w > 0 for w in weights.values())
        needed = {"common": min(3, (n_merged + 1) // 2), "intersection": n_merged}
        if len(having) < needed.get(self.report.options["modules"], 1):
            return np.zeros(self.shapes[module])
        return self.mean(module, weights)

    def norms(self, module: str) -> dict[int, float]:
        return {k: norm(self.update(k, module)) for k in self.comparable}


def check_merged(oracle: Oracle, written: Deltas) -> Iterator[Finding]:
    """Nothing sums to more than was judged, and what is reported is what was written."""
    report, merged = oracle.report, oracle.report.merged
    bad = [m for m, delta in written.items() if not np.isfinite(delta).all()]
    if bad:
        yield Finding("not finite", f"module {bad[0]} of the result")
        return
    named = {m.name for m in report.modules if m.written is not None}
    if named != set(written):
        odd = sorted(named ^ set(written))
        yield Finding("modules", f"written or said to be, but not both: {odd[:3]}")
        return
    weights = {k: oracle.clients[k].weight for k in oracle.comparable}
    slack = (merged.error or 0.0) * merged.norm
    for module, delta in written.items():
        yield from _bound(oracle, module, delta, weights, slack)
    yield from _distances(oracle, written, weights)


def _bound(
    oracle: Oracle, module: str, delta: Array, weights: Mapping[int, float], slack: float
) -> Iterator[Finding]:
    """The merged norm of one module against what the clients' norms allow."""
    size = norm(delta - oracle.previous(module))
    true = oracle.norms(module)
    said = {k: oracle.clients[k].modules[module].norm for k in oracle.comparable}
    for k, value in true.items():
        if weights[k] > 0 and abs(said[k] - value) > 1e-3 * value + 1e-9:
            yield Finding("norm", f"client {k}, {module}: {said[k]:.6g} reported, {value:.6g} true")
    for kind, norms, tolerance in (("bound", said, 1e-6), ("true bound", true, 1e-3)):
        allowed = math.fsum(w * norms[k] for k, w in weights.items() if w > 0)
        if not size <= allowed * (1 + tolerance) + slack + 1e-9:
            yield Finding(kind, f"{module}: merged norm {size:.6g}, clients allow {allowed:.6g}")


def _distances(oracle: Oracle, written: Deltas, weights: Mapping[int, float]) -> Iterator[Finding]:
    """`norm`, `error` and `plain_mean_distance` against the file's own contents."""
    merged = oracle.report.merged
    exact = {m: oracle.merged(m, weights) for m in written}
    whole = {m: exact[m] + oracle.previous(m) for m in written}
    total = _norm_of(whole)
    noise = 1e-12 * max((max(oracle.norms(m).values()) for m in written), default=0.0)
    if abs(merged.norm - total) > 1e-4 * total + noise + 1e-9:
        yield Finding("total", f"norm {merged.norm:.6g} reported, {total:.6g} true")
    error = _norm_of({m: written[m] - whole[m] for m in written})
    said = (merged.error or 0.0) * merged.norm
    if abs(said - error) > 1e-4 * error + 1e-6 * total + noise + 1e-9:
        yield Finding("error", f"error {said:.6g} reported, {error:.6g} true")
    if merged.plain_mean_distance is None:
        return
    # A module that is not written counts in this distance, or does not: both are distances.
    share = dict.fromkeys(oracle.comparable, 1.0 / len(oracle.comparable))
    away = []
    for modules in (list(oracle.shapes), list(written)):
        plain = {m: oracle.mean(m, share) for m in modules}
        moved = {m: exact.get(m, 0.0) - plain[m] for m in modules}
        size = _norm_of(plain)
        away.append(_norm_of(moved) / size if size > 0 else 0.0)
    room = (error + 10 * noise) / max(size, 1e-300) + 1e-6
    if all(abs(merged.plain_mean_distance - d) > 1e-4 * d + room for d in away):
        words = f"{merged.plain_mean_distance:.6g} reported, {away[0]:.6g} true"
        yield Finding("plain distance", words)


def _norm_of(deltas: Mapping[str, Array]) -> float:
    return norm(np.array([norm(delta) for delta in deltas.values()]))
