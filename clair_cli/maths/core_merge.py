"""The merged delta weight from the Gram matrices of the stacked factors, where they allow it.

With D = B W A, W diagonal, and Cholesky factors G_B = L_B L_B' of B'B and G_A = L_A L_A' of AA',
the matrix B inv(L_B)' has orthonormal columns, inv(L_A) A orthonormal rows, and

    D = (B inv(L_B)') (L_B' W L_A) (inv(L_A) A)

so the small core in the middle has the singular values of D. At full rank the right hand side is D
whatever the error of the Cholesky factors. Cut to a rank, what the error of the Grams costs is
eps * cond(G): that is why nothing is returned for ill-conditioned stacks (copies of one client,
say), which `lowrank.spectrum` takes with QR of the factors themselves.

Source: Y. Yamamoto and others, "Roundoff error analysis of the CholeskyQR2 algorithm", Electron.
Trans. Numer. Anal. 44, 2015 (of which this is the first half).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.grams import Grams, add_symmetric, mirror
from clair_cli.maths.stack import FactorStack, owners
from clair_cli.maths.thin import Thin

# Largest trace of the inverse of a Gram scaled to a unit diagonal: no less than the reciprocal of
# its smallest eigenvalue, and the largest one is at most the number of terms. In float64 what is
# reported then has a relative error of about 1e-7.
MAX_INVERSE = 1e9
# Least square of a singular value beside the largest one's, for squares to be good enough: then
# every value is good to 1e-10 of the largest.
_FLAT = 1e-12
# Rows of a triangular matrix that is inverted at once, on a CPU and on a GPU.
_SOLVED_AT_ONCE, _SOLVED_THERE = 64, 256


@dataclass(frozen=True)
class MergedCore:
    """Singular value decomposition of D in coordinates of its factors.

    Attributes:
        left: B @ left has orthonormal columns, (sum_rank, m). Rows of unused columns are zero.
        values: singular values of D, descending, (n,).
        right: right @ A has orthonormal rows, (m, sum_rank); m = n, or the leading m.
        growth: how much larger the rounding errors of those two products are at most than those
            of a product with orthonormal factors.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    growth: float

    @property
    def n_vectors(self) -> int:
        return self.left.shape[1]


def merged_cores(
    pair: Grams, weights: Sequence[float], n_vectors: int | None = None
) -> list[MergedCore | None]:
    """Decompose D = sum_k weights[k] delta_weight[k] in each of some modules.

    Args:
        pair: the Grams of the clients that are summed.
        weights: one finite number per client; one of weight 0 plays no part.
        n_vectors: how many singular vectors are wanted; all of them if None.

    Returns:
        The decompositions in coordinates of the factors as they stand in the stack, with None where
        the Grams are too ill-conditioned to be relied on; the values are on the CPU, the vectors
        where the Grams are.
    """
    gram_B, gram_A, device = pair.B, pair.A, pair.B.device
    scales = torch.tensor(list(weights), dtype=torch.float64).to(device) * pair.scale
    terms = scales.index_select(1, owners(pair.ranks, device))
    alive = (terms != 0) & _diagonal_alive(gram_B) & _diagonal_alive(gram_A)
    if bool(alive.all()) and terms.shape[1]:
        cores = _decomposed(gram_B, gram_A, terms, n_vectors)
    else:
        cores = [
            _of_the_living(gram_B[i], gram_A[i], terms[i], alive[i].nonzero().flatten(), n_vectors)
            for i in range(len(terms))
        ]
    return _of_unbalanced(cores, pair.by_B, pair.by_A)


def merged_thin(
    stack: FactorStack, cores: Sequence[MergedCore], rank: int, dtype: torch.dtype
) -> Thin:
    """The leading `rank` singular vectors of every module's sum.

    Args:
        stack: of the clients that the cores were made of.
        cores: one per module, all of one shape, with so many vectors.
        dtype: of the products that make the sides.
    """
    return Thin(
        stack.lora_B, stack.lora_A, torch.stack([core.values for core in cores]),
        torch.stack([core.left[:, :rank] for core in cores]),
        torch.stack([core.right[:rank] for core in cores]),
        dtype,
    )  # fmt: skip


def _of_unbalanced(
    cores: Sequence[MergedCore | None], by_B: Tensor, by_A: Tensor
) -> list[MergedCore | None]:
    """The same in coordinates of factors whose terms these multipliers balance,
    (n_modules, sum_rank)."""
    sizes = torch.cat([by_B, by_A], dim=1).abs()
    if not sizes.shape[1]:
        return list(cores)
    least = torch.where(sizes > 0, sizes, torch.inf).amin(1)
    fits = (least > 1e-25) & (sizes.amax(1) < 1e25)
    return [
        None
        if core is None
        else MergedCore(
            by_B[i][:, None] * core.left, core.values, core.right * by_A[i],
            core.growth if fit else math.inf,
        )
        for i, (core, fit) in enumerate(zip(cores, fits.cpu().tolist(), strict=True))
    ]  # fmt: skip


def _diagonal_alive(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2) > 0


def _of_the_living(
    gram_B: Tensor, gram_A: Tensor, weights: Tensor, used: Tensor, n_vectors: int | None
) -> MergedCore | None:
    """One module's, some of whose terms play no part."""
    n, size = len(used), len(weights)
    if n == 0:
        empty = gram_B.new_zeros(size, 0)
        return MergedCore(empty, torch.zeros(0, dtype=gram_B.dtype), empty.mT, 1.0)
    gram_B, gram_A = (g.index_select(0, used).index_select(1, used)[None] for g in (gram_B, gram_A))
    (core,) = _decomposed(gram_B, gram_A, weights[used][None], n_vectors)
    if core is None:
        return None
    left = core.left.new_zeros(size, core.n_vectors).index_copy_(0, used, core.left)
    right = core.right.new_zeros(core.n_vectors, size).index_copy_(1, used, core.right)
    return MergedCore(left, core.values, right, core.growth)


def _decomposed(
    gram_B: Tensor, gram_A: Tensor, weights: Tensor, n_vectors: int | None
) -> list[MergedCore | None]:
    """Of modules all of whose terms count."""
    lower_B, inverse_B, trace_B = _triangles(gram_B)
    lower_A, inverse_A, trace_A = _triangles(gram_A)
    traces = torch.maximum(trace_B, trace_A).cpu()
    good = [i for i, trace in enumerate(traces.tolist()) if trace <= MAX_INVERSE]  # not NaN
    found: list[MergedCore | None] = [None] * len(weights)
    if not good:
        return found
    if len(good) < len(found):
        lower_B, inverse_B, lower_A, inverse_A, weights = (
            t[good] for t in (lower_B, inverse_B, lower_A, inverse_A, weights)
        )
    u, values, vt = _svd((lower_B.mT * weights[:, None, :]) @ lower_A, n_vectors)
    left, right, values = inverse_B.mT @ u, vt @ inverse_A, values.cpu()
    for i, k in enumerate(good):
        found[k] = MergedCore(left[i], values[i], right[i], math.sqrt(float(traces[k])))
    return found


def _svd(core: Tensor, n_vectors: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decompositions, with the leading vectors: by eigenvectors of the squares,
    which takes half the time, where that is good enough. At full rank they give the cores back
    whatever their error."""
    square = torch.zeros_like(core)
    add_symmetric(square, core.mT)
    mirror(square)
    squares, vectors = torch.linalg.eigh(square)
    values, vt = squares.flip(1).clamp_min(0.0).sqrt(), vectors.mT.flip(1)[:, :n_vectors]
    flat = squares[:, 0] > _FLAT * squares[:, -1]
    if bool(flat.all()):
        return (core @ vt.mT) / values[:, None, : vt.shape[1]], values, vt
    if len(core) > 1:
        each = [_svd(one[None], n_vectors) for one in core]
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))  # type: ignore[return-value]
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    return u[:, :, :n_vectors], values, vt[:, :n_vectors]


def _triangles(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower Cholesky factors, their inverses, and the trace of the inverse of each gram with a
    unit diagonal, (n_modules,): infinite where there is no factor."""
    scale = gram.diagonal(dim1=1, dim2=2).sqrt()
    unit = (gram / scale[:, :, None]).div_(scale[:, None, :])
    lower, info = torch.linalg.cholesky_ex(unit)
    inverse = _inverse(lower)
    trace = torch.linalg.vector_norm(inverse, dim=(1, 2)).square()
    trace = torch.where(info == 0, trace, torch.inf)
    return lower.mul_(scale[:, :, None]), inverse.div_(scale[:, None, :]), trace


def _inverse(lower: Tensor) -> Tensor:
    """Of lower triangular matrices, which is one too: by halves, a third of the operations."""
    n = lower.shape[-1]
    if n <= (_SOLVED_AT_ONCE if lower.device.type == "cpu" else _SOLVED_THERE):
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, unit.expand_as(lower), upper=False)
        return solved
    half = n // 2
    first, second = _inverse(lower[..., :half, :half]), _inverse(lower[..., half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[..., :half, :half], inverse[..., half:, half:] = first, second
    inverse[..., half:, :half] = -(second @ (lower[..., half:, :half] @ first))
    return inverse
