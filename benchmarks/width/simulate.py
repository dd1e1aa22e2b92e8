"""Pools of simulated LoRA clients of any width, made from factors alone.

    python -m benchmarks.width.simulate [--widths 64 256] [--modules 6 28] [--counts 24 13] \\
        [--powers 1 0.5] [--inits own same] [--rates 2e-4 2e-3] [--side output]

A client fits D = s B A (width x width, rank 8, s = 2) by 60 steps of Adam on the squared loss

    tr((D - T)' H (D - T)) / 2 - tr(D' root(H) E),    H = Q diag(1, 2^-p, ..., width^-p) Q'

with a random orthogonal Q for each module. Backward passes look like that: whatever the data, a few
output directions take nearly all of the gradient. `--side input` puts the spectrum on the
activations instead (D', T', E' for D, T, E). B starts at zero and A as peft initialises it, of each
client's own or the same for all. The target T has up to two parts, E is sampling noise:

- common: rank 4, all singular values `SIZE`; the same for all honest clients;
- own: another such part, each client's own;
- E: `NOISE` `SIZE` times a random orthogonal matrix. root(H) E is how the gradient of least squares
  errs by the sample. E is weaker than the parts of T where they are, and stronger over all.

Bad clients of kind `lone` have no common part, `noise` neither common nor own part, and `other`
have another common part, which they share. A random orthogonal matrix is a Hadamard transform
between random signs, so that no width x width matrix is ever formed.

A pool is the folder `<cache>/<setting>` with one file a module, `module-000.safetensors`: `lora_A`
(clients, 8, width) and `lora_B` (clients, width, 8), float32. Modules that are there are kept.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CACHE = Path(os.environ.get("CLAIR_BENCH_CACHE", Path(__file__).parents[1] / ".cache")) / "width"
RANK, ALPHA, STEPS = 8, 16, 60
PART_RANK = 4
SIZE, NOISE = 20.0, 0.35
KINDS = ("honest", "lone", "noise", "other")


@dataclass(frozen=True)
class Setting:
    """One pool.

    Attributes:
        width: in and out features, a power of two.
        modules: number of layers.
        power: p of the spectrum i^-p.
        init: lora_A "own" for each client or the "same" for all.
        rate: learning rate.
        honest, bad: number of honest clients, and of bad ones of each kind.
        side: where the spectrum is, "output" or "input".
    """

    width: int
    modules: int
    power: float
    init: str
    rate: float
    honest: int = 24
    bad: int = 13
    side: str = "output"

    @property
    def name(self) -> str:
        """Name of the pool's folder."""
        rate = f"{self.rate:.0e}".replace("e-0", "e-")
        side = "" if self.side == "output" else f"-{self.side}"
        return (
            f"d{self.width}-m{self.modules}-p{self.power:g}-{self.init}-{rate}"
            f"-{self.honest}+{self.bad}{side}"
        )

    @property
    def kinds(self) -> list[str]:
        """Kind of each client, honest ones first."""
        counts = (self.honest, self.bad, self.bad, self.bad)
        return [kind for kind, count in zip(KINDS, counts, strict=True) for _ in range(count)]


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Hadamard transform along the first axis, of length 2^n.

    The matrix is a Kronecker product of two smaller ones, so that two products do it.
    """
    size = x.shape[0].bit_length() - 1
    first, second = _matrix(size // 2), _matrix(size - size // 2)
    y = first @ x.reshape(len(first), -1)
    return (second @ y.reshape(len(first), len(second), -1)).reshape(x.shape)


@cache
def _matrix(n: int) -> Tensor:
    """Orthonormal Hadamard matrix, 2^n x 2^n."""
    matrix = torch.ones(1, 1)
    for _ in range(n):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(len(matrix))


def signs(*shape: int, generator: torch.Generator) -> Tensor:
    """Random numbers +1 and -1."""
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


class Root:
    """root(H) = Q diag(i^(-p / 2)) Q' with a random orthogonal Q; the identity for p = 0."""

    def __init__(self, width: int, power: float, generator: torch.Generator) -> None:
        self.first, self.second = signs(2, width, 1, 1, generator=generator)
        self.spectrum = torch.arange(1.0, width + 1)[:, None, None] ** (-power / 2)
        self.flat = power == 0

    def __matmul__(self, x: Tensor) -> Tensor:
        """root(H) x, for x of shape (width, clients, columns)."""
        if self.flat:
            return x
        inner = hadamard(self.second * hadamard(self.first * x))
        return self.first * hadamard(self.second * hadamard(self.spectrum * inner))


class Targets:
    """The targets T_k = U_k V_k' of all clients in one module; U and V are (width, clients, 8)."""

    def __init__(self, kinds: Sequence[str], width: int, generator: torch.Generator) -> None:
        shared = _bases(width, 2, generator)  # of the honest clients; of kind `other`
        own = _bases(width, len(kinds), generator)
        which = torch.tensor([int(kind == "other") for kind in kinds])
        has_shared = torch.tensor([float(kind in ("honest", "other")) for kind in kinds])
        has_own = torch.tensor([float(kind != "noise") for kind in kinds])
        left = [shared[0][:, which] * has_shared[:, None], own[0] * has_own[:, None]]
        self.U = SIZE * torch.cat(left, 2)
        self.V = torch.cat([shared[1][:, which], own[1]], 2)

    def __matmul__(self, x: Tensor) -> Tensor:
        """T_k x_k, for x of shape (width, clients, columns)."""
        return _times(self.U, _inner(self.V, x))

    @property
    def T(self) -> Targets:  # noqa: N802
        """The transposed targets."""
        other = copy.copy(self)
        other.U, other.V = self.V, self.U
        return other


class Noise:
    """E_k of all clients in one module: a Hadamard matrix between two vectors of random signs."""

    def __init__(self, clients: int, width: int, generator: torch.Generator) -> None:
        self.left, self.right = signs(2, width, clients, 1, generator=generator)

    def __matmul__(self, x: Tensor) -> Tensor:
        """E_k x_k, for x of shape (width, clients, columns)."""
        return NOISE * SIZE * self.left * hadamard(self.right * x)

    @property
    def T(self) -> Noise:  # noqa: N802
        """The transposed matrices."""
        other = copy.copy(self)
        other.left, other.right = self.right, self.left
        return other


def _bases(width: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthonormal U and V, each (width, count, PART_RANK)."""
    normal = torch.randn(2, count, width, PART_RANK, generator=generator)
    U, V = torch.linalg.qr(normal)[0].permute(0, 2, 1, 3)
    return U, V


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """x_k' y_k for each client, (clients, columns of x, columns of y)."""
    return x.permute(1, 2, 0) @ y.permute(1, 0, 2)


def _times(x: Tensor, small: Tensor) -> Tensor:
    """x_k small_k for each client, (width, clients, columns)."""
    return (x.permute(1, 0, 2) @ small).permute(1, 0, 2)


def gradients(
    A: Tensor, B: Tensor, target: Targets, noise: Noise, out: Root, inside: Root
) -> tuple[Tensor, Tensor]:
    """Gradients by A' and B of the loss, with out^2 for H on the left of D, inside^2 on the right.

    Args:
        A, B: A' and B, both (width, clients, rank).
    """
    scale = ALPHA / RANK
    half_a, half_b = inside @ A, out @ B
    a, b = inside @ half_a, out @ half_b
    by_a = inside @ (scale * _times(A, _inner(B, b)) - target.T @ b) - noise.T @ half_b
    by_b = out @ (scale * _times(B, _inner(A, a)) - target @ a) - noise @ half_a
    return scale * (inside @ by_a), scale * (out @ by_b)


def train_module(setting: Setting, index: int) -> tuple[Tensor, Tensor]:
    """lora_A (clients, rank, width) and lora_B (clients, width, rank) of one module."""
    seed = zlib.crc32(f"{setting.name} {index}".encode())
    generator = torch.Generator().manual_seed(seed)
    width, kinds = setting.width, setting.kinds
    power = {setting.side: setting.power}
    out = Root(width, power.get("output", 0.0), generator)
    inside = Root(width, power.get("input", 0.0), generator)
    targets, noise = Targets(kinds, width, generator), Noise(len(kinds), width, generator)
    starts = len(kinds) if setting.init == "own" else 1
    uniform = torch.rand(width, starts, RANK, generator=generator) * 2 - 1
    A = (uniform / math.sqrt(width)).expand(-1, len(kinds), -1).clone()
    B = torch.zeros_like(A)
    optimiser = torch.optim.Adam([A, B], lr=setting.rate)
    for _ in range(STEPS):
        A.grad, B.grad = gradients(A, B, targets, noise, out, inside)
        optimiser.step()
    return A.permute(1, 2, 0).contiguous(), B.permute(1, 0, 2).contiguous()


def make_pool(setting: Setting, cache: Path = CACHE) -> int:
    """Train and save the modules that are missing from a pool; returns how many."""
    folder, made = cache / setting.name, 0
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(setting.modules):
        path = folder / f"module-{index:03d}.safetensors"
        if path.exists():
            continue
        A, B = train_module(setting, index)
        part = path.with_suffix(".part")
        save_file({"lora_A": A, "lora_B": B}, part)
        part.rename(path)
        made += 1
    return made


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """All combinations that the command line asks for, narrow ones with few modules first."""
    honest, bad = options.counts
    for width, modules in product(options.widths, options.modules):
        for power, init, rate in product(options.powers, options.inits, options.rates):
            yield Setting(width, modules, power, init, rate, honest, bad, options.side)


def parser(about: str) -> argparse.ArgumentParser:
    """The options that choose pools."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    made.add_argument("--modules", type=int, nargs="+", default=[6, 28])
    made.add_argument("--powers", type=float, nargs="+", default=[1.0, 0.5])
    made.add_argument("--inits", nargs="+", default=["own", "same"], choices=("own", "same"))
    made.add_argument("--rates", type=float, nargs="+", default=[2e-4, 2e-3])
    made.add_argument(
        "--counts", type=int, nargs=2, default=[24, 13], metavar=("HONEST", "BAD"),
        help="honest clients in a pool, and bad ones of each kind",
    )  # fmt: skip
    made.add_argument("--side", default="output", choices=("output", "input"))
    made.add_argument("--cache", type=Path, default=CACHE)
    return made


def main() -> None:
    """Command line."""
    options = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    for setting in settings(options):
        start = time.perf_counter()
        made = make_pool(setting, options.cache)
        print(f"{setting.name}: {made} modules, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
