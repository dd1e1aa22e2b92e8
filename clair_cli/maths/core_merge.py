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
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.grams import add_symmetric, mirror

# Largest trace of the inverse of a Gram scaled to a unit diagonal: no less than the reciprocal of
# its smallest eigenvalue, and the largest one is at most the number of terms. In float64 what is
# reported then has a relative error of about 1e-7.
MAX_INVERSE = 1e9
# Least square of a singular value beside the largest one's, for squares to be good enough: then
# every value is good to 1e-10 of the largest.
_FLAT = 1e-12
# Rows of a triangular matrix that is inverted at once.
_SOLVED_AT_ONCE = 64


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

    def of_unbalanced(self, by_B: Tensor, by_A: Tensor) -> MergedCore:
        """The same in coordinates of factors whose terms these multipliers balance."""
        left, right = by_B[:, None] * self.left, self.right * by_A
        sizes = torch.cat([by_B, by_A]).abs()
        sizes = sizes[sizes > 0]
        fits = not len(sizes) or (float(sizes.min()) > 1e-25 and float(sizes.max()) < 1e25)
        return MergedCore(left, self.values, right, self.growth if fits else math.inf)


def merged_core(
    gram_B: Tensor, gram_A: Tensor, weights: Tensor, n_vectors: int | None = None
) -> MergedCore | None:
    """Decompose D = B diag(weights) A.

    Args:
        gram_B, gram_A: B'B and AA', (sum_rank, sum_rank), float64, CPU.
        weights: one finite number per rank-one term, (sum_rank,); a term of weight 0 plays no
            part.
        n_vectors: how many singular vectors are wanted; all of them if None.

    Returns:
        The decomposition, or None where the Grams are too ill-conditioned to be relied on.
    """
    alive = (weights != 0) & (gram_B.diagonal() > 0) & (gram_A.diagonal() > 0)
    used = alive.nonzero().flatten()
    n, size = len(used), len(weights)
    if n == 0:
        empty = gram_B.new_zeros(size, 0)
        return MergedCore(empty, gram_B.new_zeros(0), empty.mT, 1.0)
    if n < size:
        gram_B, gram_A = (
            gram.index_select(0, used).index_select(1, used) for gram in (gram_B, gram_A)
        )
        weights = weights[used]
    side_B, side_A = _triangle(gram_B), _triangle(gram_A)
    if side_B is None or side_A is None:
        return None
    lower_B, inverse_B, growth_B = side_B
    lower_A, inverse_A, growth_A = side_A
    u, values, vt = _decomposed((lower_B.mT * weights) @ lower_A, n_vectors)
    left, right = inverse_B.mT @ u, vt @ inverse_A
    if n < size:
        left = left.new_zeros(size, left.shape[1]).index_copy_(0, used, left)
        right = right.new_zeros(len(right), size).index_copy_(1, used, right)
    return MergedCore(left, values, right, max(growth_B, growth_A))


def _decomposed(core: Tensor, n_vectors: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Its singular value decomposition, with the leading vectors: by eigenvectors of the square,
    which takes half the time, where that is good enough. At full rank they give the core back
    whatever their error."""
    square = torch.zeros_like(core)[None]
    add_symmetric(square, core.mT[None])
    mirror(square)
    squares, vectors = torch.linalg.eigh(square[0])
    if not float(squares[0]) > _FLAT * float(squares[-1]):  # NaN too
        u, values, vt = torch.linalg.svd(core, full_matrices=False)
        return u[:, :n_vectors], values, vt[:n_vectors]
    values, vt = squares.flip(0).sqrt(), vectors.mT.flip(0)[:n_vectors]
    return (core @ vt.mT) / values[: len(vt)], values, vt


def _triangle(gram: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """The lower Cholesky factor, its inverse, and the root of the trace of the inverse of the gram
    with a unit diagonal; None for a gram that is nearly singular."""
    scale = gram.diagonal().sqrt()
    unit = (gram / scale[:, None]).div_(scale)
    lower, info = torch.linalg.cholesky_ex(unit)
    if int(info) != 0:
        return None
    inverse = _inverse(lower)
    trace = float(torch.linalg.vector_norm(inverse)) ** 2
    if not trace <= MAX_INVERSE:
        return None
    return lower.mul_(scale[:, None]), inverse.div_(scale), math.sqrt(trace)


def _inverse(lower: Tensor) -> Tensor:
    """Of a lower triangular matrix, which is one too: by halves, a third of the operations."""
    n = len(lower)
    if n <= _SOLVED_AT_ONCE:
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, unit, upper=False)
        return solved
    half = n // 2
    first, second = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[half:, :half] = -(second @ (lower[half:, :half] @ first))
    return inverse
