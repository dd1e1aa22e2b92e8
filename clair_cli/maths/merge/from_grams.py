"""The merged delta weight from the Gram matrices of the stacked factors, where they allow it.

With D = B W A, W diagonal, and the Cholesky factor L L' = AA', the matrix inv(L) A has orthonormal
rows and

    D = (B W L) (inv(L) A)        so        (B W L)'(B W L) = L' (W B'B W) L = V diag(squares) V'

has the squares of D's singular values as eigenvalues. Then right = V' inv(L) and left = W L V /
values give the singular vectors right @ A and B @ left. Only one of the Grams is factored. At full
rank left diag(values) right is W, and the product is D, whatever the error of the Cholesky factor.
Cut to a rank, the effect of the Grams' rounding errors is known from the vectors: see
`CoreSVD.amplification`. Ill-conditioned stacks (copies of one client, say) get no decomposition
here; `lowrank.svd` decomposes them with QR of the factors themselves.

Source: Y. Yamamoto and others, "Roundoff error analysis of the CholeskyQR2 algorithm", Electron.
Trans. Numer. Anal. 44, 2015 (of which this is the first half).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from clair_cli.maths.factors.factored_svd import FactoredSVD
from clair_cli.maths.factors.grams import Grams, blocks, chosen_columns
from clair_cli.maths.factors.stack import FactorStack, owners

# Largest amplification of rounding errors: in float64 the reported numbers then have a relative
# error of about 1e-7.
TRUSTED_AMPLIFICATION = 1e9**0.5
# Least product of the smallest and the largest singular value over the components' summed squared
# norms, for an eigendecomposition of the squares: then every singular value has an error below
# 1e-11 of the largest, and vectors are orthogonal to 1e-6.
_LEAST_FLATNESS = 1e-5


@dataclass(frozen=True)
class CoreSVD:
    """Singular value decomposition of one module's D = B W A in coordinates of its factors.

    Attributes:
        left: B @ left has orthonormal columns, (sum_rank, m). Rows of unused components are zero.
        values: singular values of D, descending, (n,).
        right: right @ A has orthonormal rows, (m, sum_rank); m = n, or the leading m.
        amplification: by which factor at most the rounding errors of those two products are larger
            than those of a product with orthonormal factors, vector by vector, (m,), CPU.
        itself: the side that holds its singular vectors themselves instead of coordinates of
            them: "left", (out_features, m), or "right", (m, in_features); None for neither.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    amplification: Tensor
    itself: Literal["left", "right"] | None = None

    def leading(self, n: int | None, unit: float = 1.0) -> CoreSVD:
        """The decomposition of `unit` times D with the leading n vectors; all of them if None."""
        left, right = self.left[:, :n], self.right[:n]
        if n is not None and n < self.n_vectors:
            left, right = left.clone(), right.clone()
        return replace(
            self, left=left, values=self.values * unit, right=right,
            amplification=self.amplification[:n],
        )  # fmt: skip

    def amplification_to(self, rank: int) -> float:
        """The largest amplification of the leading `rank` vectors."""
        return max(self.amplification[:rank].tolist(), default=1.0)

    @property
    def n_vectors(self) -> int:
        """Number m of singular vectors."""
        return self.left.shape[1]


def core_svds(
    pair: Grams, weights: Sequence[float], n_vectors: int | None = None
) -> list[CoreSVD | None]:
    """Decompose D = sum_k weights[k] delta_weight[k] in each of some modules.

    Args:
        pair: the Grams of the clients that are summed.
        weights: one finite number per client; one of weight 0 plays no part.
        n_vectors: how many singular vectors are wanted; all of them if None.

    Returns:
        One decomposition a module, in coordinates of the factors as they stand in the stack; None
        where the Grams are too ill-conditioned. Values are on the CPU, vectors on the Grams'
        device.
    """
    gram_B, gram_A, device = pair.B, pair.A, pair.B.device
    scales = torch.tensor(list(weights), dtype=torch.float64).to(device) * pair.scale
    scaled = scales.index_select(1, owners(pair.ranks, device))
    alive = (scaled != 0) & _diagonal_alive(gram_B) & _diagonal_alive(gram_A)
    if bool(alive.all()) and scaled.shape[1]:
        cores = _svds_of_used(gram_B, gram_A, scaled, n_vectors)
    else:
        cores = [
            _svd_of_nonzero(
                gram_B[i], gram_A[i], scaled[i], alive[i].nonzero().flatten(), n_vectors
            )
            for i in range(len(scaled))
        ]
    return _of_unbalanced(cores, pair.by_B, pair.by_A)


def leading_svd(
    stack: FactorStack, cores: Sequence[CoreSVD], rank: int, dtype: torch.dtype
) -> FactoredSVD:
    """The leading `rank` singular vectors of every module's weighted sum.

    Args:
        stack: of the clients whose sums were decomposed.
        cores: one per module, with at least `rank` vectors; there is only one module if its core
            holds the singular vectors of a side themselves.
        dtype: in which the products with the factors are computed.
    """
    values = torch.stack([core.values for core in cores])
    left = torch.stack([core.left[:, :rank] for core in cores])
    right = torch.stack([core.right[:rank] for core in cores])
    lora_B, lora_A = stack.lora_B, stack.lora_A
    match cores[0].itself:
        case "left":
            return FactoredSVD(left.to(lora_B.device), lora_A, values, None, right, dtype)
        case "right":
            return FactoredSVD(lora_B, right.to(lora_A.device), values, left, None, dtype)
    return FactoredSVD(lora_B, lora_A, values, left, right, dtype)


def _of_unbalanced(
    cores: Sequence[CoreSVD | None], by_B: Tensor, by_A: Tensor
) -> list[CoreSVD | None]:
    """Decompositions in coordinates of the factors before they were balanced.

    Args:
        by_B, by_A: factors that balanced each component, (n_modules, sum_rank).
    """
    sizes = torch.cat([by_B, by_A], dim=1).abs()
    if not sizes.shape[1]:
        return list(cores)
    least = torch.where(sizes > 0, sizes, torch.inf).amin(1)
    fits = (least > 1e-25) & (sizes.amax(1) < 1e25)
    return [
        None
        if core is None
        else CoreSVD(
            by_B[i][:, None] * core.left, core.values, core.right * by_A[i],
            core.amplification if fit else torch.full_like(core.amplification, torch.inf),
        )
        for i, (core, fit) in enumerate(zip(cores, fits.cpu().tolist(), strict=True))
    ]  # fmt: skip


def _diagonal_alive(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2) > 0


def _svd_of_nonzero(
    gram_B: Tensor, gram_A: Tensor, weights: Tensor, used: Tensor, n_vectors: int | None
) -> CoreSVD | None:
    """Decompose one module from its `used` components; the others are zero or have weight 0."""
    n, size = len(used), len(weights)
    if n == 0:
        empty = gram_B.new_zeros(size, 0)
        none = torch.zeros(0, dtype=gram_B.dtype)
        return CoreSVD(empty, none, empty.mT, none)
    gram_B, gram_A = (chosen_columns(gram[None], used) for gram in (gram_B, gram_A))
    (core,) = _svds_of_used(gram_B, gram_A, weights[used][None], n_vectors)
    if core is None:
        return None
    left = core.left.new_zeros(size, core.n_vectors).index_copy_(0, used, core.left)
    right = core.right.new_zeros(core.n_vectors, size).index_copy_(1, used, core.right)
    return CoreSVD(left, core.values, right, core.amplification)


def _svds_of_used(
    gram_B: Tensor, gram_A: Tensor, weights: Tensor, n_vectors: int | None
) -> list[CoreSVD | None]:
    """Decompose modules in which no component is zero or has weight 0."""
    lower, factored = _triangles(gram_A)
    good = factored.cpu().nonzero().flatten().tolist()
    found: list[CoreSVD | None] = [None] * len(weights)
    if not good:
        return found
    if len(good) < len(found):
        gram_B, gram_A, lower, weights = (t[good] for t in (gram_B, gram_A, lower, weights))
    size_B, size_A = (g.diagonal(dim1=1, dim2=2).sqrt() for g in (gram_B, gram_A))
    unit = weights.abs().amax(1)  # no square is too large or too small then
    weights = weights / unit[:, None]
    middle = (weights[:, :, None] * gram_B).mul_(weights[:, None, :])
    squares, vectors = torch.linalg.eigh(_congruent(lower, middle))  # reads only the lower triangle
    values, vectors = squares.flip(1).clamp_min(0.0).sqrt(), vectors.flip(2)
    left = weights[:, :, None] * (lower @ vectors) / values[:, None, :]
    right = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
    whole = (weights * size_B * size_A).square().sum(1)
    flat_enough = values[:, 0] * values[:, -1] > _LEAST_FLATNESS * torch.maximum(
        whole, values[:, 0].square()
    )
    amplification = _amplification(size_B[:, :, None] * left, right * size_A[:, None, :]).cpu()
    values, units = values.cpu(), unit.cpu()
    for i, (k, good_enough) in enumerate(zip(good, flat_enough.cpu().tolist(), strict=True)):
        core = (
            CoreSVD(left[i], values[i], right[i], amplification[i])
            if good_enough
            else _by_svd(gram_B[i], lower[i], weights[i])
        )
        if (
            core is not None and float(core.amplification.amax()) <= TRUSTED_AMPLIFICATION
        ):  # not NaN
            found[k] = core.leading(n_vectors, float(units[i]))
    return found


def _by_svd(gram_B: Tensor, lower_A: Tensor, weights: Tensor) -> CoreSVD | None:
    """Decompose one module through the SVD of L_B' W L_A: three times as slow, and exact for small
    singular values too."""
    lower, factored = _triangles(gram_B[None])
    lower_B = lower[0]
    if not bool(factored.cpu()):
        return None
    u, values, vt = torch.linalg.svd((lower_B.mT * weights) @ lower_A)
    left = torch.linalg.solve_triangular(lower_B.mT, u, upper=True)
    right = torch.linalg.solve_triangular(lower_A.mT, vt.mT, upper=True).mT
    size_B, size_A = (torch.linalg.vector_norm(low, dim=1) for low in (lower_B, lower_A))
    amplification = _amplification((size_B[:, None] * left)[None], (right * size_A)[None])[0]
    return CoreSVD(left, values.cpu(), right, amplification.cpu())


def _amplification(left: Tensor, right: Tensor) -> Tensor:
    """The larger norm of each pair of singular vectors, in coordinates of components scaled to norm
    one, (n_modules, m)."""
    return torch.maximum(
        torch.linalg.vector_norm(left, dim=1), torch.linalg.vector_norm(right, dim=2)
    )


def _triangles(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors, and which modules have one, (n_modules,)."""
    scale = gram.diagonal(dim1=1, dim2=2).sqrt()
    unit = (gram / scale[:, :, None]).div_(scale[:, None, :])
    lower, info = torch.linalg.cholesky_ex(unit)
    return lower.mul_(scale[:, :, None]), info == 0


def _congruent(lower: Tensor, middle: Tensor) -> Tensor:
    """`lower' @ middle @ lower`, in and below the blocks on the diagonal; zeros above them."""
    half, square = torch.empty_like(middle), torch.zeros_like(middle)
    for start, stop in blocks(lower.shape[1]):
        half[:, :, start:stop] = middle[:, :, start:] @ lower[:, start:, start:stop]
    for start, stop in blocks(lower.shape[1]):
        square[:, start:stop, :stop] = lower[:, start:, start:stop].mT @ half[:, start:, :stop]
    return square
