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

# Largest trace of the inverse of a Gram scaled to a unit diagonal: no less than the reciprocal of
# its smallest eigenvalue, and the largest one is at most the number of terms. In float64 what is
# reported then has a relative error of about 1e-7.
MAX_INVERSE = 1e9
# Least square of a singular value beside the largest one's, for squares to be good enough: then
# every value is good to 1e-10 of the largest.
_FLAT = 1e-12


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

    def leading(self, n: int) -> MergedCore:
        """Without the vectors after the first n."""
        left, right = self.left[:, :n].clone(), self.right[:n].clone()
        return MergedCore(left, self.values, right, self.growth)

    def of_unbalanced(self, by_B: Tensor, by_A: Tensor) -> MergedCore:
        """The same in coordinates of factors whose terms these multipliers balance."""
        left, right = by_B[:, None] * self.left, self.right * by_A
        sizes = torch.cat([by_B, by_A]).abs()
        sizes = sizes[sizes > 0]
        fits = not len(sizes) or (float(sizes.min()) > 1e-25 and float(sizes.max()) < 1e25)
        return MergedCore(left, self.values, right, self.growth if fits else math.inf)

    @property
    def n_bytes(self) -> int:
        return 8 * (self.left.numel() + self.right.numel())


def merged_core(gram_B: Tensor, gram_A: Tensor, weights: Tensor) -> MergedCore | None:
    """Decompose D = B diag(weights) A.

    Args:
        gram_B, gram_A: B'B and AA', (sum_rank, sum_rank), float64, CPU.
        weights: one finite number per rank-one term, (sum_rank,); a term of weight 0 plays no
            part.

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
    u, values, vt = _decomposed((lower_B.mT * weights) @ lower_A)
    left, right = inverse_B.mT @ u, vt @ inverse_A
    if n < size:
        left = left.new_zeros(size, n).index_copy_(0, used, left)
        right = right.new_zeros(n, size).index_copy_(1, used, right)
    return MergedCore(left, values, right, max(growth_B, growth_A))


def _decomposed(core: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its singular value decomposition: by eigenvectors of the square, which takes half the time,
    where that is good enough. At full rank they give the core back whatever their error."""
    squares, vectors = torch.linalg.eigh(core.mT @ core)
    if not float(squares[0]) > _FLAT * float(squares[-1]):  # NaN too
        u, values, vt = torch.linalg.svd(core, full_matrices=False)
        return u, values, vt
    values, vt = squares.flip(0).sqrt(), vectors.mT.flip(0)
    return (core @ vt.mT) / values, values, vt


def _triangle(gram: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """The lower Cholesky factor, its inverse, and the root of the trace of the inverse of the gram
    with a unit diagonal; None for a gram that is nearly singular."""
    scale = gram.diagonal().sqrt()
    unit = gram / scale[:, None] / scale[None, :]
    lower, info = torch.linalg.cholesky_ex(unit)
    if int(info) != 0:
        return None
    inverse = torch.linalg.solve_triangular(
        lower, torch.eye(len(lower), dtype=lower.dtype), upper=False
    )
    trace = float(inverse.square().sum())
    if not trace <= MAX_INVERSE:
        return None
    return lower * scale[:, None], inverse / scale[None, :], math.sqrt(trace)
