"""Clients' factors side by side, and the two Gram matrices that hold everything about them.

For client k of one module, `delta_weight` D_k = scaling_k B_k A_k. A and B alone mean nothing
((B R, R^-1 A) is the same adapter), so what leaves this file depends on D only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# A client's (lora_A, lora_B, scaling) in one module, or None: it lacks the module (zero update).
Factors = tuple[Tensor, Tensor, float] | None


@dataclass(frozen=True)
class FactorStack:
    """The factors of all clients for a batch of modules of one shape, ready for products.

    `delta_weight[m, k] = scale[m, k] * lora_B[m][:, block k] @ lora_A[m][block k]`, where the
    factors are rescaled so that no product over- or underflows: rank-one term by rank-one
    term both factors have the same norm, and each client's largest term has norm one.

    Attributes:
        lora_A: shape (n_modules, sum_rank, in_features).
        lora_B: shape (n_modules, out_features, sum_rank).
        scale: shape (n_modules, n_clients), float64, at least 0; 0 for a zero update.
        ranks: columns of each client; a client with a smaller rank in some module of the
            batch is padded with zeros.
    """

    lora_A: Tensor
    lora_B: Tensor
    scale: Tensor
    ranks: tuple[int, ...]

    @property
    def n_clients(self) -> int:
        return len(self.ranks)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.lora_B.shape[1], self.lora_A.shape[2]


def _balance(lora_A: Tensor, lora_B: Tensor, scaling: float) -> tuple[Tensor, Tensor, float]:
    """What to multiply the rank-one terms' factors with so that each term is split evenly and the
    largest has norm one, and that largest times the scaling; float64."""
    norm_A = torch.linalg.vector_norm(lora_A, dim=1, dtype=torch.float64)
    norm_B = torch.linalg.vector_norm(lora_B, dim=0, dtype=torch.float64)
    term = norm_A * norm_B
    largest = float(term.max()) if len(term) else 0.0
    scale = abs(scaling) * largest
    if scale == 0.0:
        return torch.zeros_like(term), torch.zeros_like(term), 0.0
    half = torch.sqrt(term / largest)
    factor_A = torch.where(norm_A > 0, half / norm_A, 0.0)
    factor_B = torch.where(norm_B > 0, half / norm_B, 0.0)
    return factor_A, factor_B if scaling > 0 else -factor_B, scale


def _times(values: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product, in float64 unless a narrower `dtype` holds 16-bit values and the factors."""
    if dtype != torch.float64 and values.element_size() == 2:
        sizes = factors.abs()[factors != 0]
        if not sizes.numel() or (float(sizes.min()) > 1e-30 and float(sizes.max()) < 1e30):
            return values.to(dtype) * factors.to(dtype)
    return (values.double() * factors).to(dtype)


def stack_factors(
    modules: Sequence[Sequence[Factors]],
    shape: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> FactorStack:
    """Lay the clients' factors side by side for a batch of modules of one shape.

    Args:
        modules: per module one entry per client, the clients in one fixed order:
            `(lora_A (rank, in), lora_B (out, rank), scaling)`, or None for a zero update.
        shape: (out_features, in_features) of every module in the batch.
        dtype: of the stack; float64 unless the device has none.
        device: where the stack lives.

    Raises:
        ValueError: a factor does not fit `shape`, or A and B differ in rank.
    """
    out_features, in_features = shape
    n_clients = len(modules[0])
    ranks = tuple(
        max((0 if m[k] is None else m[k][0].shape[0] for m in modules), default=0)  # type: ignore[index]
        for k in range(n_clients)
    )
    total = sum(ranks)
    stacked_A = torch.zeros(len(modules), total, in_features, dtype=dtype)
    stacked_B = torch.zeros(len(modules), out_features, total, dtype=dtype)
    scale = torch.zeros(len(modules), n_clients, dtype=torch.float64)
    for i, clients in enumerate(modules):
        start = 0
        for k, factors in enumerate(clients):
            if factors is not None:
                lora_A, lora_B, scaling = factors
                rank = lora_A.shape[0]
                if lora_A.shape != (rank, in_features) or lora_B.shape != (out_features, rank):
                    raise ValueError(
                        f"lora_A {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)} do not "
                        f"make a delta weight of shape {shape}"
                    )
                by_A, by_B, scale[i, k] = _balance(lora_A, lora_B, scaling)
                columns = slice(start, start + rank)
                stacked_A[i, columns] = _times(lora_A, by_A[:, None], dtype)
                stacked_B[i, :, columns] = _times(lora_B, by_B, dtype)
            start += ranks[k]
    return FactorStack(
        stacked_A.to(device),
        stacked_B.to(device),
        scale,
        ranks,
    )


@dataclass(frozen=True)
class Grams:
    """B'B and AA' of a `FactorStack`, in float64 on the CPU, and the norms they give.

    Attributes:
        B: shape (n_modules, sum_rank, sum_rank).
        A: shape (n_modules, sum_rank, sum_rank).
        sketch_B, sketch_A: products of B' and A with a fixed random matrix of their width,
            (n_modules, sum_rank, SKETCH_DIM): where to look for the leading directions, in
            coordinates of the weights and not of the gauge. None for small stacks.
        norms: Frobenius norm of each delta weight over its `scale`, (n_modules, n_clients).
        scale: as in the stack.
        ranks: as in the stack.
        shape: (out_features, in_features).
    """

    B: Tensor
    A: Tensor
    norms: Tensor
    scale: Tensor
    ranks: tuple[int, ...]
    shape: tuple[int, int]
    sketch_B: Tensor | None = None
    sketch_A: Tensor | None = None

    def module(self, index: int) -> Grams:
        """Those of one module of the batch."""
        one = slice(index, index + 1)
        return Grams(
            self.B[one], self.A[one], self.norms[one], self.scale[one], self.ranks, self.shape,
            None if self.sketch_B is None else self.sketch_B[one],
            None if self.sketch_A is None else self.sketch_A[one],
        )  # fmt: skip

    @property
    def delta_norms(self) -> Tensor:
        """Frobenius norm of every delta weight, (n_modules, n_clients), weight units."""
        return self.norms * self.scale


# Stacks of more columns than this have their leading directions found by iteration.
SKETCHED_ABOVE = 128
SKETCH_DIM = 24

# Rows that one block of a symmetric product has at least.
_MIN_BLOCK = 64


def symmetric_product(rows: Tensor) -> Tensor:
    """`rows @ rows'` of shape (..., n, width), the half above the diagonal copied from below.

    In eight blocks of rows that is 9/16 of the operations.
    """
    n = rows.shape[-2]
    step = max(_MIN_BLOCK, -(-n // 8))
    product = rows.new_empty((*rows.shape[:-1], n))
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = rows[..., start:stop, :] @ rows[..., :stop, :].mT
        product[..., start:stop, :stop] = block
        product[..., :start, start:stop] = block[..., :start].mT
    return product


# Below this share of its factors' size a product is rounding error, not an update (float64
# Grams resolve a norm to about 1e-8 of the factors' product).
_VANISHING = 1e-7


def grams(stack: FactorStack) -> Grams:
    """Both Gram matrices of a stack, and each client's norm from them.

    A product that cancels to rounding error counts as a zero update (norm exactly 0).
    """
    B = symmetric_product(stack.lora_B.mT).double().cpu()
    A = symmetric_product(stack.lora_A).double().cpu()
    squared = block_sums(B * A, stack.ranks).diagonal(dim1=1, dim2=2)
    norms = squared.clamp_min(0.0).sqrt()
    norms = torch.where(norms > _VANISHING, norms, 0.0)
    norms = torch.where(stack.scale > 0, norms, 0.0)
    sketch_B = sketch_A = None
    if sum(stack.ranks) > SKETCHED_ABOVE:
        sketch_B = _sketch(stack.lora_B.mT)
        sketch_A = _sketch(stack.lora_A)
    return Grams(B, A, norms, stack.scale, stack.ranks, stack.shape, sketch_B, sketch_A)


def _sketch(rows: Tensor) -> Tensor:
    """`rows` times a Gaussian matrix that is the same for all stacks of a width, float64, CPU."""
    random = _gaussian(rows.shape[-1]).to(device=rows.device, dtype=rows.dtype)
    return (rows @ random).double().cpu()


@lru_cache(maxsize=16)
def _gaussian(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, SKETCH_DIM, generator=generator, dtype=torch.float64)


def block_sums(matrix: Tensor, ranks: Sequence[int]) -> Tensor:
    """Sum a (..., sum_rank, sum_rank) matrix over each pair of clients' blocks.

    Returns:
        Shape (..., n_clients, n_clients).
    """
    device, n_clients = matrix.device, len(ranks)
    owner = torch.repeat_interleave(torch.arange(n_clients), torch.tensor(list(ranks))).to(device)
    leading = matrix.shape[:-2]
    rows = matrix.new_zeros(*leading, n_clients, matrix.shape[-1])
    rows.index_add_(-2, owner, matrix)
    return rows.new_zeros(*leading, n_clients, n_clients).index_add_(-1, owner, rows)
