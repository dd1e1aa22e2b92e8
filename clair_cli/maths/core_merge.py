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

from dataclasses import dataclass

import torch
from torch import Tensor

# Largest trace of the inverse of a Gram scaled to a unit diagonal: no less than the reciprocal of
# its smallest eigenvalue, and the largest one is at most the number of terms. In float64 what is
# reported then has a relative error of about 1e-7.
MAX_INVERSE = 1e9


@dataclass(frozen=True)
class MergedCore:
    """Singular value decomposition of D in coordinates of its factors.

    Attributes:
        left: B @ left has orthonormal columns, (sum_rank, m). Rows of unused columns are zero.
        values: singular values of D, descending, (n,).
        right: right @ A has orthonormal rows, (m, sum_rank); m = n, or the leading m.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def n_vectors(self) -> int:
        return self.left.shape[1]

    def leading(self, n: int) -> MergedCore:
        """Without the vectors after the first n."""
        return MergedCore(self.left[:, :n].clone(), self.values, self.right[:n].clone())

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
        return MergedCore(empty, gram_B.new_zeros(0), empty.mT)
    side_B, side_A = (_triangle(gram[used][:, used]) for gram in (gram_B, gram_A))
    if side_B is None or side_A is None:
        return None
    (lower_B, inverse_B), (lower_A, inverse_A) = side_B, side_A
    core = (lower_B.mT * weights[used]) @ lower_A
    u, values, vt = torch.linalg.svd(core, full_matrices=False)
    left, right = gram_B.new_zeros(size, n), gram_B.new_zeros(n, size)
    left[used] = inverse_B.mT @ u
    right[:, used] = vt @ inverse_A
    return MergedCore(left, values, right)


def _triangle(gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """The lower Cholesky factor and its inverse; None for a gram that is nearly singular."""
    scale = gram.diagonal().sqrt()
    unit = gram / scale[:, None] / scale[None, :]
    lower, info = torch.linalg.cholesky_ex(unit)
    if int(info) != 0:
        return None
    inverse = torch.linalg.solve_triangular(
        lower, torch.eye(len(lower), dtype=lower.dtype), upper=False
    )
    if not float(inverse.square().sum()) <= MAX_INVERSE:
        return None
    return lower * scale[:, None], inverse / scale[None, :]
