"""Rounds with a known truth for refinement: D_k = D_0 + U C_k + H_k + noise, per module.

D_0 is common to all clients, U C_k the client's own part inside the shared subspace, H_k its own
part outside (benign heterogeneity, dense, so that it looks like noise), and the noise has a known
standard deviation sigma_k per entry of a delta weight. `input` has C_k V' instead of U C_k,
`both` has U C_k V' with D_0 = U V' large enough to show in the matrix stacking.

Noise makes every D_k full rank, so adapters are full-rank factors, B = D_k or A = D_k.

Source: the model of arXiv 2605.21217 in our reading; sizes and spectra are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Deltas = dict[str, Tensor]

# Module to (out, in): none square, the shorter side 24 everywhere, so that one rank fits all.
MODULES = {
    "layers.0.q_proj": (40, 24),
    "layers.0.down_proj": (24, 40),
    "layers.0.up_proj": (48, 24),
    "layers.1.q_proj": (40, 24),
    "layers.1.down_proj": (24, 40),
    "layers.1.up_proj": (48, 24),
}
RANK = 24
DIM = 3
ENTRIES = sum(out * in_ for out, in_ in MODULES.values())
SIDES = ("output", "input", "both")
# Norm of D_0 in a module where U C_k has norm 1: small where only a side is shared.
COMMON = {"output": 0.1, "input": 0.1, "both": 2.0}


@dataclass(frozen=True)
class PlantedRound:
    """One round and the answer.

    Attributes:
        local: client to module to (out, in), float64: what each client sends.
        truth: the same without noise; benign clients only.
        sigma: noise per entry of a typical client. sigmas: of each client.
        counts: samples of each client, sigma_k^2 = tau / n_k.
        heterogeneity: ||H_k||^2 over the noise energy sigma^2 d_off of a typical client.
    """

    local: dict[str, Deltas]
    truth: dict[str, Deltas]
    sigma: float
    sigmas: dict[str, float]
    counts: dict[str, float]
    heterogeneity: dict[str, float]

    @property
    def benign(self) -> tuple[str, ...]:
        return tuple(self.truth)

    def mean(self, weights: Mapping[str, float]) -> Deltas:
        """Weighted mean of the local updates, module to (out, in)."""
        return {
            module: torch.stack([w * self.local[n][module] for n, w in weights.items()]).sum(0)
            for module in MODULES
        }

    def adapters(self) -> dict[str, tuple[Deltas, dict[str, Any]]]:
        """Client to (state dict, config), full rank, scale 1."""
        return {name: (state_of(deltas), dict(CONFIG)) for name, deltas in self.local.items()}


CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "planted",
    "r": RANK,
    "lora_alpha": RANK,
    "target_modules": ["down_proj", "q_proj", "up_proj"],
    "bias": "none",
}


def state_of(deltas: Mapping[str, Tensor]) -> Deltas:
    """Trivial full-rank factors of dense delta weights, under PEFT's names."""
    state = {}
    for module, delta in deltas.items():
        tall = delta.shape[0] >= delta.shape[1]
        identity = torch.eye(RANK, dtype=delta.dtype)
        state[f"base_model.model.{module}.lora_A.weight"] = identity if tall else delta
        state[f"base_model.model.{module}.lora_B.weight"] = delta if tall else identity.clone()
    return state


def dense(state: Mapping[str, Tensor], scaling: float = 1.0) -> Deltas:
    """Delta weights of a written adapter, module to (out, in), float64."""
    found = {}
    for module in MODULES:
        A = state[f"base_model.model.{module}.lora_A.weight"].double()
        B = state[f"base_model.model.{module}.lora_B.weight"].double()
        found[module] = scaling * (B @ A)
    return found


def n_outside(side: str, shape: tuple[int, int]) -> int:
    """Degrees of freedom off the shared subspace in a module of that shape."""
    inside = (DIM if side != "input" else shape[0]) * (DIM if side != "output" else shape[1])
    return shape[0] * shape[1] - inside


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _orthonormal(rows: int, g: torch.Generator) -> Tensor:
    return torch.linalg.qr(_normal(g, rows, DIM))[0]


class _Shared:
    """What the benign clients share in one module: U, V (or one of them) and D_0."""

    def __init__(self, side: str, shape: tuple[int, int], g: torch.Generator) -> None:
        self.side, self.shape = side, shape
        U, V = (_orthonormal(rows, g) for rows in shape)
        self.U = U if side != "input" else None
        self.V = V if side != "output" else None
        common = _unrelated(shape, g)
        if self.U is not None and self.V is not None:
            common = self.U @ self.V.T / DIM**0.5
        self.D_0 = COMMON[side] * common

    def own(self, g: torch.Generator) -> Tensor:
        """U C, C V' or U C V' with normal C, of expected squared norm 1."""
        C = _normal(
            g, self.shape[0] if self.U is None else DIM, self.shape[1] if self.V is None else DIM
        )
        C = C / C.numel() ** 0.5
        C = C if self.U is None else self.U @ C
        return C if self.V is None else C @ self.V.T

    def outside(self, g: torch.Generator) -> Tensor:
        """A dense normal matrix off the subspace, entries of variance 1 there."""
        G = _normal(g, *self.shape)
        inside = G if self.U is None else self.U @ (self.U.T @ G)
        return G - (inside if self.V is None else inside @ self.V @ self.V.T)


def _unrelated(shape: tuple[int, int], g: torch.Generator) -> Tensor:
    """A random matrix of the signal's rank in directions of its own, norm 1."""
    core = _normal(g, DIM, shape[1]) / (DIM * shape[1]) ** 0.5
    delta = _orthonormal(shape[0], g) @ core
    return delta / delta.norm()


def planted_round(
    n_clients: int,
    *,
    side: str = "output",
    noise: float = 0.5,
    heterogeneity: Sequence[float] | float = 0.0,
    counts: Sequence[float] | None = None,
    bad: int = 0,
    seed: int = 0,
) -> PlantedRound:
    """Make one round.

    Args:
        n_clients: all, the `bad` last ones included.
        side: "output", "input" or "both".
        noise: expected norm of the noise over that of U C_k, in all modules together.
        heterogeneity: ||H_k||^2 over the noise energy off the subspace, at least 0; one number
            or one per benign client.
        counts: samples of each client; its noise is sigma sqrt(mean count / count). Equal if
            None.
        bad: clients with unrelated updates of the same norm and noise.
    """
    g = torch.Generator().manual_seed(seed)
    sigma = noise * (len(MODULES) / ENTRIES) ** 0.5
    given = [1.0] * n_clients if counts is None else list(counts)
    typical = sum(given) / len(given)
    sigmas = [sigma * (typical / n) ** 0.5 for n in given]
    shared = {m: _Shared(side, shape, g) for m, shape in MODULES.items()}
    n_benign = n_clients - bad
    apart = (
        [float(heterogeneity)] * n_benign
        if isinstance(heterogeneity, (int, float))
        else list(heterogeneity)
    )
    local, truth = {}, {}
    for k in range(n_clients):
        if k < n_benign:
            name, signal = f"client-{k:02d}", {m: s.D_0 + s.own(g) for m, s in shared.items()}
            for m, s in shared.items():
                signal[m] = signal[m] + apart[k] ** 0.5 * sigma * s.outside(g)
            truth[name] = signal
        else:
            size = (1.0 + COMMON[side] ** 2) ** 0.5
            name, signal = f"odd-{k:02d}", {m: size * _unrelated(s, g) for m, s in MODULES.items()}
        local[name] = {m: d + sigmas[k] * _normal(g, *d.shape) for m, d in signal.items()}
    names = list(local)
    return PlantedRound(
        local,
        truth,
        sigma,
        dict(zip(names, sigmas, strict=True)),
        dict(zip(names, given, strict=True)),
        dict(zip(truth, apart, strict=True)),
    )


def squared_error(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Mean squared error per entry over all modules."""
    return float(sum((found[m] - truth[m]).square().sum() for m in truth)) / ENTRIES


def predicted_crossing(side: str, n_clients: int) -> float:
    """Heterogeneity at which refined and local errors are equal, equal noise and weights.

    1 - d_fit / ((K - 1) d_off) of clair_cli/maths/refine/gain.py, with the true dimensions and the
    differences' true share of the energy inside the subspace.

    Returns:
        ||H_k||^2 over sigma^2 d_off, 0 to 1.
    """
    share = 1.0 - 1.0 / n_clients
    if side == "both":  # D_0 lies inside too
        share /= 1.0 + COMMON[side] ** 2
    d_off = fitted = 0.0
    for out, in_ in MODULES.values():
        d_off += n_outside(side, (out, in_))
        lengths = {"output": (out,), "input": (in_,), "both": (out, in_)}[side]
        fitted += share * sum((length - DIM) * DIM for length in lengths)
    return 1.0 - fitted / ((n_clients - 1) * d_off)
