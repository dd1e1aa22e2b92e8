"""Evidence of one module whose stack is over-complete: it has more rank-one components than the
layer has rows or columns.

A Gram of all components would grow with the square of the number of clients; every product in this
file grows with the number itself. Subspace iteration on the factors finds the leading directions P
and Q of the two sides. Each delta weight D_k is reduced to C_k = P' D_k Q, COMPARED_DIM numbers
square, and the tables of pairs are made of the C_k. The rest of D_k is measured through random
projections, with the same ones for all clients: copies have cosine 1, and the distance of near
copies has an error of a fifth of itself per module. The overlap of all pairs' spaces outside P is
estimated as one sum, and divided among the pairs by the energy that their clients have outside P;
the overlap of many clients lies inside P. Norms and effective ranks are exact.

Sources: N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", SIAM Review 53(2),
2011, algorithm 4.4; the estimate: R. Meyer and others, "Hutch++: Optimal stochastic trace
estimation", SOSA 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clair_cli.maths.evidence.beside import beside_cores
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.own_sizes import OwnSizes, sizes_of, split_ranks
from clair_cli.maths.evidence.similarity import PairTable
from clair_cli.maths.factors.block_diagonal import BlockDiagonal, of_blocks
from clair_cli.maths.factors.common_components import Side, sides
from clair_cli.maths.factors.grams import delta_norms_over_scale
from clair_cli.maths.factors.roots import gram_root
from clair_cli.maths.factors.stack import FactorStack, balance

# Leading directions of each side in which the clients are compared.
COMPARED_DIM = 64
# Multiplications with a side's Gram in the subspace iteration, before the last, which measures too.
_POWERS = 2
# Random vectors on which the parts off the leading directions are projected. The projections of two
# unrelated matrices have a cosine of about 1 / _PROBES; one of _N_SE / _PROBES is beyond chance.
_PROBES = 48
_N_SE = 5.0
# Numbers of a side that a CPU converts and multiplies at once, so that they stay in its cache; and
# the least number of columns at once.
_CHUNK_NUMBERS = 2**19
_LEAST_CHUNK = 32


@dataclass(frozen=True)
class OvercompleteEvidence:
    """Evidence of one module.

    Attributes:
        evidence: as `gather` computes it from Grams; the tables of pairs are estimates.
        sizes: of the clients' own delta weights.
    """

    evidence: Evidence
    sizes: OwnSizes


def overcomplete_evidence(stack: FactorStack) -> OvercompleteEvidence:
    """Reduce one module to the evidence that the judge needs.

    Args:
        stack: of one module, on the CPU or a GPU.
    """
    ranks = stack.ranks
    side_B, side_A = sides(stack)
    own_B, own_A = (_own_grams(side, ranks, stack.dtype) for side in (side_B, side_A))
    norm_B, norm_A = (torch.cat([g.diagonal() for g in own]).sqrt()[None] for own in (own_B, own_A))
    by_A, by_B, scale = balance(norm_A, norm_B, stack.scaling, ranks)
    own_A, own_B = _scaled(own_A, by_A[0], ranks), _scaled(own_B, by_B[0], ranks)
    squares = torch.stack([(a * b).sum() for a, b in zip(own_A, own_B, strict=True)])
    pairs = zip(own_A, own_B, strict=True)
    components = torch.stack([(a.diagonal() * b.diagonal()).sum() for a, b in pairs])
    norms = delta_norms_over_scale(squares, components, scale[0], stack.dtype)
    common = 0 if stack.common is None else stack.common.rank
    sizes_own = _own_sizes(own_A, own_B, scale, common)
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    roots_A = [gram_root(g) * i for g, i in zip(own_A, inverse, strict=True)]
    roots_B = [gram_root(g) * i for g, i in zip(own_B, inverse, strict=True)]
    output = _leading_subspace(side_B, _turns(roots_A, by_B[0], ranks), stack.dtype)
    input_ = _leading_subspace(side_A, _turns(roots_B, by_A[0], ranks), stack.dtype)
    seen_B = torch.split(by_B[0][:, None] * output.components, list(ranks))
    seen_A = torch.split(by_A[0][:, None] * input_.components, list(ranks))
    cores = torch.stack([b.mT @ a * i for b, a, i in zip(seen_B, seen_A, inverse, strict=True)])
    out_features, in_features = stack.shape
    sizes = torch.stack(
        [(r.mT @ g @ r).square().sum().sqrt() for r, g in zip(roots_A, own_B, strict=True)]
    )
    evidence = Evidence(
        norms[None] * scale,
        _matrix_table(
            cores, _rests(stack, output, input_, by_B[0], by_A[0], cores, inverse), norms
        ),
        _subspace_table(output, ranks, sizes, out_features),
        _subspace_table(input_, ranks, sizes, in_features),
        torch.where(norms > 0, 1.0 / sizes.square().clamp_min(1e-300), torch.nan)[None],
        beside_cores(cores, norms > 0, stack.shape),
    )
    return OvercompleteEvidence(evidence, sizes_own)


def _own_sizes(
    own_A: list[Tensor], own_B: list[Tensor], scale: Tensor, previous_rank: int
) -> OwnSizes:
    squares, components = [], []
    for a, b in zip(own_A, own_B, strict=True):
        inner = a * b
        own = split_ranks([len(inner)], previous_rank)[0]
        for block in (inner[:own, :own], inner[own:, own:]):
            squares.append(block.sum())
            components.append(block.diagonal().sum())
    return sizes_of(torch.stack(squares)[None], torch.stack(components)[None], scale)


def _own_grams(side: Side, ranks: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Gram of each client's components on one side, (rank, rank), float64, CPU."""
    last = 0 if side.common is None else side.common.rank
    own = [max(0, rank - last) for rank in ranks]  # a client without components has no common ones
    *blocks, common = (part.to(dtype) for part in torch.split(side.rows[0], [*own, last]))
    alone = [(block @ block.mT).double().cpu() for block in blocks]
    if side.common is None:
        return alone
    beside = [(block @ common.mT).double().cpu() for block in blocks]
    shared = (common @ common.mT).double().cpu()
    whole = [
        torch.cat([torch.cat([a, b], dim=1), torch.cat([b.mT, shared], dim=1)]) if rank else a
        for a, b, rank in zip(alone, beside, own, strict=True)
    ]
    return whole if side.by is None else _scaled(whole, side.by[0].cpu(), ranks)


def _scaled(own: list[Tensor], by: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    parts = torch.split(by, list(ranks))
    return [b[:, None] * g * b for g, b in zip(own, parts, strict=True)]


def _turns(roots: list[Tensor], by: Tensor, ranks: Sequence[int]) -> BlockDiagonal:
    """Matrices that turn each client's rows of one side, as they stand in the stack, into its unit
    delta weight in orthonormal coordinates of the other side."""
    parts = torch.split(by, list(ranks))
    return of_blocks([b[:, None] * root for root, b in zip(roots, parts, strict=True)])


@dataclass(frozen=True)
class _LeadingSubspace:
    """A side's leading orthonormal directions P, given by products of other matrices with P.

    Attributes:
        components: the side's components as they stand in the stack, times P, (sum_rank, dim).
        units: the unit delta weights D_k' P, in orthonormal coordinates of the other side,
            (sum_rank, dim).
        outside: estimate of |S|^2 - |P' S P|^2, S the sum of D_k D_k' over unit delta weights.
        probed: the components times a random matrix Z, (sum_rank, _PROBES).
        probe: P' Z, (dim, _PROBES).
    """

    components: Tensor
    units: Tensor
    outside: float
    probed: Tensor
    probe: Tensor


def _leading_subspace(side: Side, turns: BlockDiagonal, dtype: torch.dtype) -> _LeadingSubspace:
    """Subspace iteration on X = rows' blockdiag(turns), whose X X' is the sum of D_k D_k' over
    unit delta weights. The start is a sketch of the delta weights, so that directions that have not
    converged (where the spectrum is flat, any direction is as good) do not depend on the gauge.
    """
    width = side.rows.shape[2]
    dim = min(COMPARED_DIM, sum(turns.ranks), width)
    random = _gaussian(width, COMPARED_DIM + _PROBES).to(device=side.rows.device, dtype=dtype)
    seen = _onto(side, random, dtype)
    sketch = _turned(turns.mT, seen)  # X' random
    basis, probes = torch.linalg.qr(sketch[:, :dim]).Q, sketch[:, COMPARED_DIM:]
    for _ in range(_POWERS):
        basis = torch.linalg.qr(_turned(turns.mT, _squared(side, turns, basis, dtype))).Q
    components = _squared(side, turns, basis, dtype)
    units = _turned(turns.mT, components)
    values, rotation = torch.linalg.eigh(basis.mT @ units)
    values, rotation = values.flip(0), rotation.flip(1)
    alive = values > 1e-12 * values[:1].clamp_min(1e-300)
    scale = torch.where(alive, values.clamp_min(1e-300).rsqrt(), 0.0)
    components, units, basis = (m @ rotation * scale for m in (components, units, basis))
    # for Z = (1 - P P') random, of which the iteration knows nothing: |S Z|^2 and |P' S Z|^2
    probe = basis.mT @ probes
    left = probes - units @ probe  # X' Z
    outside = _squared_norm(side, _turned(turns, left), dtype) + float(
        (units.mT @ left).square().sum()
    )
    return _LeadingSubspace(components, units, outside / _PROBES, seen[:, COMPARED_DIM:], probe)


@lru_cache(maxsize=16)
def _gaussian(width: int, dim: int) -> Tensor:
    """A matrix of standard normal numbers, (width, dim), the same in all runs; float64."""
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, dim, generator=generator, dtype=torch.float64)


def _turned(turns: BlockDiagonal, values: Tensor) -> Tensor:
    """One module's block-diagonal matrix times `values`, (sum_rank, dim)."""
    return turns.times(values[None])[0]


def _onto(side: Side, other: Tensor, dtype: torch.dtype) -> Tensor:
    """The side's components times `other`, (width, m): shape (sum_rank, m), float64, CPU. (BLAS is
    fastest with few long rows times many columns.)"""
    rows = side.rows[0]
    result = torch.zeros(other.shape[1], rows.shape[0], dtype=dtype, device=rows.device)
    for chunk, part in zip(
        _column_chunks(rows, dtype), torch.split(other, _step(rows)), strict=True
    ):
        result.addmm_(part.mT.contiguous(), chunk.mT)
    return _spread(side, result.mT.double().cpu())


def _squared(side: Side, turns: BlockDiagonal, basis: Tensor, dtype: torch.dtype) -> Tensor:
    """The Gram of the side's components times blockdiag(turns) @ basis, float64, CPU."""
    rows, turned = side.rows[0], _turned_rows(side, _turned(turns, basis), dtype)
    result = torch.zeros_like(turned)
    for chunk in _column_chunks(rows, dtype):
        result.addmm_(turned @ chunk, chunk.mT)
    return _spread(side, result.mT.double().cpu())


def _spread(side: Side, values: Tensor) -> Tensor:
    """Copy values of one module's stored rows to the components that use them."""
    return side.spread(values[None])[0]


def _turned_rows(side: Side, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Add up `values` of the components, (sum_rank, m), in the stored rows that they use: shape
    (m, n_stored), on the device of the rows."""
    stored = side.gathered(values[None])[0]
    return stored.mT.contiguous().to(device=side.rows.device, dtype=dtype)


def _squared_norm(side: Side, values: Tensor, dtype: torch.dtype) -> float:
    """Squared norm of the transposed components times `values`, (sum_rank, m)."""
    rows, turned = side.rows[0], _turned_rows(side, values, dtype)
    parts = [
        (turned @ chunk).square().sum(dtype=torch.float64) for chunk in _column_chunks(rows, dtype)
    ]
    return float(torch.stack(parts).sum())


def _step(rows: Tensor) -> int:
    """Columns of `rows`, (n, width), that are multiplied at once."""
    if rows.device.type != "cpu":
        return max(1, rows.shape[1])
    return max(_LEAST_CHUNK, _CHUNK_NUMBERS // max(1, rows.shape[0]))


def _column_chunks(rows: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    return (part.to(dtype) for part in torch.split(rows, _step(rows), dim=1))


def _rests(
    stack: FactorStack,
    output: _LeadingSubspace,
    input_: _LeadingSubspace,
    by_B: Tensor,
    by_A: Tensor,
    cores: Tensor,
    inverse: Tensor,
) -> Tensor:
    """The rest of each unit delta weight after P C_k Q', projected on random directions of both
    sides and scaled to the norm of the rest, (n_clients, _PROBES, _PROBES)."""
    seen_B = torch.split(by_B[:, None] * output.probed, list(stack.ranks))
    seen_A = torch.split(by_A[:, None] * input_.probed, list(stack.ranks))
    whole = torch.stack([b.mT @ a * i for b, a, i in zip(seen_B, seen_A, inverse, strict=True)])
    rest = whole - output.probe.mT @ cores @ input_.probe
    size = torch.linalg.matrix_norm(rest)[:, None, None].clamp_min(1e-300)
    energy = (1.0 - cores.square().sum((1, 2))).clamp_min(0.0)
    scaled: Tensor = rest / size * energy.sqrt()[:, None, None]
    return scaled


def _matrix_table(cores: Tensor, rests: Tensor, norms: Tensor) -> PairTable:
    """Cosines of the delta weights of each pair. Rests that are no more alike than chance explains
    count as unrelated."""
    inside, outside = (flat @ flat.mT for flat in (cores.flatten(1), rests.flatten(1)))
    size = outside.diagonal().clamp_min(0.0).sqrt()
    chance = _N_SE / _PROBES * size[:, None] * size[None, :]
    value = inside + torch.where(outside.abs() > chance, outside, 0.0)
    value = value.clamp(-1.0, 1.0)
    alive = norms > 0
    return PairTable(_finished(value, alive, 1.0), _finished(torch.zeros_like(value), alive, 0.0))


def _subspace_table(
    side: _LeadingSubspace, ranks: Sequence[int], sizes: Tensor, width: int
) -> PairTable:
    """Similarity of the clients' spaces on one side, weighted by their spectra.

    Args:
        sizes: |D D'| of the unit delta weights, (n_clients,).
    """
    units = torch.split(side.units, list(ranks))
    squares = torch.stack([unit.mT @ unit for unit in units]).flatten(1)
    inside = squares @ squares.mT
    energy = 1.0 - squares[:, :: side.units.shape[1] + 1].sum(1)  # off P
    energy = torch.where(sizes > 0, energy.clamp_min(0.0), 0.0)
    shares = (energy[:, None] * energy[None, :]).fill_diagonal_(0.0)
    own = float((sizes.square() - inside.diagonal()).sum())
    # negative where the leading directions hold more than their part of the pairs' overlap
    shares = shares * ((side.outside - own) / shares.sum().clamp_min(1e-300))
    denominator = (sizes[:, None] * sizes[None, :]).clamp_min(1e-300)
    value = ((inside + shares) / denominator).clamp(0.0, 1.0)
    null = (1.0 / (width * denominator)).clamp(max=1.0)
    alive = sizes > 0
    return PairTable(_finished(value, alive, 1.0), _finished(null, alive, None))


def _finished(table: Tensor, alive: Tensor, diagonal: float | None) -> Tensor:
    """The table of one module, (1, n_clients, n_clients), with NaN where a delta weight is zero.

    Args:
        table: (n_clients, n_clients).
        alive: whether a client's delta weight is not zero, (n_clients,).
        diagonal: number to put on the diagonal; None leaves it.
    """
    if diagonal is not None:
        table = table.clone().fill_diagonal_(diagonal)
    both = alive[:, None] & alive[None, :]
    return torch.where(both, table, torch.nan)[None]
