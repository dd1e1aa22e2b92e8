"""Clients' factors side by side, ready for products.

For client k of one module, the delta weight is D_k = scaling_k B_k A_k. The factors alone mean
nothing ((B R, R^-1 A) is the same adapter), so results that leave the maths depend on D_k only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Least width of an over-complete stack: narrower layers have Grams that are quick to make.
MIN_WIDTH = 256
# A client's (lora_A, lora_B, scaling) in one module; None if the client lacks the module, so that
# its delta weight is zero.
Factors = tuple[Tensor, Tensor, float] | None


@dataclass(frozen=True)
class CommonComponents:
    """Rank-one components that are part of every delta weight of a stack. They are stored once,
    after the components that belong to one client each.

    Attributes:
        rank: number of common components.
        columns: the stored column of every component, (sum_rank,), int64: client by client, of each
            its own components and then the common ones.
        by: factor of every component's column of lora_B, (n_modules, sum_rank), float64, -1 to 1.
    """

    rank: int
    columns: Tensor
    by: Tensor


@dataclass(frozen=True)
class FactorStack:
    """The factors of all clients for a batch of modules of one shape.

    `delta_weight[m, k] = scaling[m, k] * lora_B[m][:, block k] @ lora_A[m][block k]`; with `common`
    components, block k is made of the stored columns and rows that `common.columns` names.

    Attributes:
        lora_A: shape (n_modules, sum_rank, in_features). As the clients sent it, in a dtype that
            holds all their values; or, where squares of such values may not fit `dtype`,
            balanced (see `balance`) in `dtype`. Fewer rows with `common` components.
        lora_B: shape (n_modules, out_features, sum_rank).
        scaling: shape (n_modules, n_clients), float64; 0 for a zero delta weight.
        ranks: columns of each client; a client with a smaller rank in some module of the
            batch is padded with zeros.
        dtype: of products of the stack: float64, or float32 on a device without float64.
        common: components that all clients have; see `common_components.differences_to_last`.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: Tensor
    ranks: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    common: CommonComponents | None = None

    @property
    def n_clients(self) -> int:
        return len(self.ranks)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.lora_B.shape[1], self.lora_A.shape[2]


def balance(
    norm_A: Tensor, norm_B: Tensor, scaling: Tensor, ranks: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors that split each rank-one component evenly between its two sides, and give each
    client's largest component norm one.

    Args:
        norm_A: norms of the rows of lora_A, (n_modules, sum_rank).
        norm_B: norms of the columns of lora_B, (n_modules, sum_rank).
        scaling: (n_modules, n_clients).

    Returns:
        Factors of lora_A's rows, at least 0, (n_modules, sum_rank); of lora_B's columns, with the
        scaling's sign, (n_modules, sum_rank); and |scaling| times the norm of each client's largest
        component, (n_modules, n_clients). All are 0 for a client whose delta weight is zero.
    """
    size = norm_A * norm_B
    if same_rank(ranks):
        largest = size.reshape(len(size), len(ranks), ranks[0]).amax(2)
    else:
        parts = torch.split(size, list(ranks), dim=1)
        empty = size.new_zeros(len(size))
        largest = torch.stack([p.amax(1) if p.shape[1] else empty for p in parts], dim=1)
    scale = scaling.abs() * largest
    owner = owners(ranks, size.device)
    alive = (size > 0) & (scale[:, owner] > 0)
    half = torch.where(alive, (size / largest[:, owner]).sqrt(), 0.0)
    by_A = torch.where(alive, half / norm_A, 0.0)
    by_B = torch.where(alive, half / norm_B, 0.0)
    return by_A, torch.where(scaling[:, owner] < 0, -by_B, by_B), scale


def stack_factors(
    modules: Sequence[Sequence[Factors]],
    shape: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    pinned: bool = False,
    balanced: bool = False,
) -> FactorStack:
    """Lay the clients' factors side by side for a batch of modules of one shape.

    Args:
        modules: per module one entry per client, the clients in one fixed order:
            `(lora_A (rank, in), lora_B (out, rank), scaling)`, or None for a zero delta weight.
        shape: (out_features, in_features) of every module in the batch.
        dtype: of products; float64 unless the device has none.
        device: of the stack's tensors.
        pinned: whether the factors are laid out in page-locked memory first, from which they are
            copied to a CUDA device while it does other work.
        balanced: balance the factors whatever their dtypes. Coordinates in one stack hold in
            another only if both are balanced, or neither is.

    Raises:
        ValueError: a factor does not fit `shape`, or A and B differ in rank.
    """
    for factors in (f for clients in modules for f in clients):
        _check(factors, shape)
    ranks = tuple(
        max((0 if m[k] is None else m[k][0].shape[0] for m in modules), default=0)  # type: ignore[index]
        for k in range(len(modules[0]))
    )
    side_A = _side(modules, 0, shape[1], ranks, pinned)
    side_B = _side(modules, 1, shape[0], ranks, pinned)
    scaling = torch.tensor(
        [[0.0 if f is None else f[2] for f in clients] for clients in modules],
        dtype=torch.float64,
    )
    narrow = side_A.element_size() <= 4 and side_B.element_size() <= 4
    if balanced or dtype != torch.float64 or not narrow:  # squares might not fit
        norms = [
            torch.linalg.vector_norm(side, dim=dim, dtype=torch.float64)
            for side, dim in ((side_A, 2), (side_B, 1))
        ]
        by_A, by_B, scaling = balance(norms[0], norms[1], scaling, ranks)
        side_A = (side_A.double() * by_A[:, :, None]).to(dtype)
        side_B = (side_B.double() * by_B[:, None, :]).to(dtype)
    on_device = [side.to(device, non_blocking=pinned) for side in (side_A, side_B)]
    return FactorStack(on_device[0], on_device[1], scaling, ranks, dtype)


def _check(factors: Factors, shape: tuple[int, int]) -> None:
    if factors is None:
        return
    lora_A, lora_B, _ = factors
    rank = lora_A.shape[0]
    if lora_A.shape != (rank, shape[1]) or lora_B.shape != (shape[0], rank):
        raise ValueError(
            f"lora_A {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)} do not "
            f"make a delta weight of shape {shape}"
        )


def _side(
    modules: Sequence[Sequence[Factors]], side: int, width: int, ranks: Sequence[int], pinned: bool
) -> Tensor:
    """lora_A of all clients one below another (side 0), or lora_B side by side (side 1), of all
    modules; padded with zeros to `ranks`."""
    given = [[None if f is None else (f[0], f[1])[side] for f in clients] for clients in modules]
    dtype = common_dtype([t.dtype for tensors in given for t in tensors if t is not None])
    size = (sum(ranks), width) if side == 0 else (width, sum(ranks))
    result = torch.empty(len(modules), *size, dtype=dtype, pin_memory=pinned)
    for tensors, out in zip(given, result, strict=True):
        parts = []
        for tensor, rank in zip(tensors, ranks, strict=True):
            missing = rank - (0 if tensor is None else tensor.shape[side])
            if tensor is not None:
                parts.append(tensor)
            if missing:
                rest = (missing, width) if side == 0 else (width, missing)
                parts.append(torch.zeros(rest, dtype=dtype))
        if parts:
            torch.cat(parts, dim=side, out=out)
    return result


def is_overcomplete(n_components: int, shape: tuple[int, int]) -> bool:
    """Whether a stack has more rank-one components than its layer has rows or columns, so that a
    Gram of the components would be larger than one of the layer.

    Args:
        n_components: rank-one components of all clients together.
        shape: (out_features, in_features); layers of less than `MIN_WIDTH` never count.
    """
    return n_components > min(shape) >= MIN_WIDTH


def owners(ranks: Sequence[int], device: torch.device) -> Tensor:
    """Index of the client that each column of a stack belongs to, (sum_rank,)."""
    owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(list(ranks)))
    return owner.to(device)


def client_sums(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """Sum (n_modules, sum_rank) over each client's columns: shape (n_modules, n_clients)."""
    if same_rank(ranks):
        return torch.unflatten(values, 1, (len(ranks), -1)).sum(2)
    found = values.new_zeros(len(values), len(ranks))
    return found.index_add_(1, owners(ranks, values.device), values)


def client_columns(ranks: Sequence[int], clients: Sequence[int]) -> Tensor:
    """Indices of some clients' columns in a stack."""
    ends = [0, *itertools.accumulate(ranks)]
    return torch.tensor([i for k in clients for i in range(ends[k], ends[k + 1])], dtype=torch.long)


def same_rank(ranks: Sequence[int]) -> bool:
    """Whether all clients have one rank, so that their blocks can be worked on at once."""
    return len(set(ranks)) == 1 and ranks[0] > 0


def common_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds the values of all `dtypes`; float32 if there are none."""
    dtype = dtypes[0] if dtypes else torch.float32
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return dtype


def block_norms(stack: Tensor, ranks: Sequence[int], *, joint: bool) -> Tensor:
    """Frobenius norm of each client's block.

    Args:
        stack: shape (n_modules, rows, sum(ranks)).
        joint: over all modules together (one number per client) or module by module.

    Returns:
        Shape (n_clients,) if joint, else (n_modules, n_clients).
    """
    per_block = client_sums((stack * stack).sum(1), ranks)
    return (per_block.sum(0) if joint else per_block).sqrt()


def spread(per_block: Tensor, ranks: Sequence[int]) -> Tensor:
    """Repeat the number of each client's block for its columns.

    Args:
        per_block: (n_clients,) or (n_modules, n_clients).

    Returns:
        Shape (1, 1, sum_rank) or (n_modules, 1, sum_rank), to multiply a stack with.
    """
    repeats = ranks[0] if same_rank(ranks) else torch.tensor(list(ranks), device=per_block.device)
    columns = torch.repeat_interleave(per_block, repeats, dim=-1)
    return columns[None, None, :] if columns.ndim == 1 else columns[:, None, :]
