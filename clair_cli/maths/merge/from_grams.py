"""The merged delta weight from the Gram matrices of the stacked factors, where they allow it.

With D = B W A, W diagonal, and the Cholesky factor L L' = AA', the matrix inv(L) A has orthonormal
rows and

    D = (B W L) (inv(L) A)        so        (B W L)'(B W L) = L' (W B'B W) L = V diag(squares) V'

has the squares of D's singular values. Then right = V' inv(L) and left = W L V / values give the
singular vectors right @ A and B @ left. Only one of the Grams is factored. At full rank left
diag(values) right is W, and the product is D, whatever the error of the Cholesky factor. Cut to a
rank, what the errors of the Grams cost is known from the vectors: see `MergedCore.growth`. That is
why nothing is returned for ill-conditioned stacks (copies of one client, say), which
`lowrank.spectrum` takes with QR of the factors themselves.

Source: Y. Yamamoto and others, "Roundoff error analysis of the CholeskyQR2 algorithm", Electron.
Trans. Numer. Anal. 44, 2015 (of which this is the first half).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import Grams, blocks, chosen_columns
from clair_cli.maths.factors.stack import FactorStack, owners
from clair_cli.maths.factors.thin import Thin

# Largest square of `MergedCore.growth`: in float64 what is reported then has a relative error of
# about 1e-7.
MAX_GROWTH_SQUARE = 1e9
# Least product of the smallest and the largest singular value beside the sum of the terms' squared
# norms, for squares to be good enough: then every value is good to 1e-11 of the largest, and
# vectors are orthogonal to 1e-6.
_FLAT = 1e-5


@dataclass(frozen=True)
class MergedCore:
    """Singular value decomposition of D in coordinates of its factors.

    Attributes:
        left: B @ left has orthonormal columns, (sum_rank, m). Rows of unused columns are zero.
        values: singular values of D, descending, (n,).
        right: right @ A has orthonormal rows, (m, sum_rank); m = n, or the leading m.
        growth: how much larger the rounding errors of those two products are at most, vector by
            vector, than those of a product with orthonormal factors, (m,), CPU.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    growth: Tensor

    def leading(self, n: int | None, unit: float) -> MergedCore:
        """With so many vectors, of `unit` times D."""
        left, right = self.left[:, :n], self.right[:n]
        if n is not None and n < self.n_vectors:
            left, right = left.clone(), right.clone()
        return MergedCore(left, self.values * unit, right, self.growth[:n])

    def growth_to(self, rank: int) -> float:
        """The largest growth of the leading `rank` vectors."""
        return max(self.growth[:rank].tolist(), default=1.0)

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
            core.growth if fit else torch.full_like(core.growth, torch.inf),
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
        none = torch.zeros(0, dtype=gram_B.dtype)
        return MergedCore(empty, none, empty.mT, none)
    gram_B, gram_A = (chosen_columns(gram[None], used) for gram in (gram_B, gram_A))
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
    lower, factored = _triangles(gram_A)
    good = factored.cpu().nonzero().flatten().tolist()
    found: list[MergedCore | None] = [None] * len(weights)
    if not good:
        return found
    if len(good) < len(found):
        gram_B, gram_A, lower, weights = (t[good] for t in (gram_B, gram_A, lower, weights))
    size_B, size_A = (g.diagonal(dim1=1, dim2=2).sqrt() for g in (gram_B, gram_A))
    unit = weights.abs().amax(1)  # no square is too large or too small then
    weights = weights / unit[:, None]
    middle = (weights[:, :, None] * gram_B).mul_(weights[:, None, :])
    squares, vectors = torch.linalg.eigh(_congruent(lower, middle))  # of what is below alone
    values, vectors = squares.flip(1).clamp_min(0.0).sqrt(), vectors.flip(2)
    left = weights[:, :, None] * (lower @ vectors) / values[:, None, :]
    right = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
    whole = (weights * size_B * size_A).square().sum(1)
    flat = values[:, 0] * values[:, -1] > _FLAT * torch.maximum(whole, values[:, 0].square())
    growth = _growth(size_B[:, :, None] * left, right * size_A[:, None, :]).cpu()
    values, units = values.cpu(), unit.cpu()
    for i, (k, good_enough) in enumerate(zip(good, flat.cpu().tolist(), strict=True)):
        core = (
            MergedCore(left[i], values[i], right[i], growth[i])
            if good_enough
            else _by_svd(gram_B[i], lower[i], weights[i])
        )
        if core is not None and bool((core.growth.square() <= MAX_GROWTH_SQUARE).all()):
            found[k] = core.leading(n_vectors, float(units[i]))  # NaN is not
    return found


def _by_svd(gram_B: Tensor, lower_A: Tensor, weights: Tensor) -> MergedCore | None:
    """Of one module, from the singular values of L_B' W L_A: in three times the time, and small
    ones are exact too."""
    lower, factored = _triangles(gram_B[None])
    lower_B = lower[0]
    if not bool(factored.cpu()):
        return None
    u, values, vt = torch.linalg.svd((lower_B.mT * weights) @ lower_A)
    left = torch.linalg.solve_triangular(lower_B.mT, u, upper=True)
    right = torch.linalg.solve_triangular(lower_A.mT, vt.mT, upper=True).mT
    size_B, size_A = (torch.linalg.vector_norm(low, dim=1) for low in (lower_B, lower_A))
    growth = _growth((size_B[:, None] * left)[None], (right * size_A)[None])[0]
    return MergedCore(left, values.cpu(), right, growth.cpu())


def _growth(left: Tensor, right: Tensor) -> Tensor:
    """Of vectors in coordinates of terms of norm one, (n_modules, m)."""
    return torch.maximum(
        torch.linalg.vector_norm(left, dim=1), torch.linalg.vector_norm(right, dim=2)
    )


def _triangles(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factors, and where there is one, (n_modules,)."""
    scale = gram.diagonal(dim1=1, dim2=2).sqrt()
    unit = (gram / scale[:, :, None]).div_(scale[:, None, :])
    lower, info = torch.linalg.cholesky_ex(unit)
    return lower.mul_(scale[:, :, None]), info == 0


def _congruent(lower: Tensor, middle: Tensor) -> Tensor:
    """`lower' @ middle @ lower`, on and below the diagonal's blocks."""
    half, square = torch.empty_like(middle), torch.zeros_like(middle)
    for start, stop in blocks(lower.shape[1]):
        half[:, :, start:stop] = middle[:, :, start:] @ lower[:, start:, start:stop]
    for start, stop in blocks(lower.shape[1]):
        square[:, start:stop, :stop] = lower[:, start:, start:stop].mT @ half[:, start:, :stop]
    return square
