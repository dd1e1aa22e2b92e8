"""How alike two clients' delta weights are, in the three stackings, from the Grams alone.

    output   column space         <D_j D_j', D_k D_k'> / (|D_j D_j'| |D_k D_k'|)
             unrelated clients:   |D_j|^2 |D_k|^2 / (out |D_j D_j'| |D_k D_k'|)
    input    row space            the same with D' for D and in for out
    matrix   direction of vec(D)  <D_j, D_k> / (|D_j| |D_k|)
             unrelated clients:   0

All are invariant to gauge and to positive scale. Modules are repeated measurements of one
pair, which gives each mean a standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.maths.evidence.tables import blocks
from clair_cli.maths.factors.grams import Grams, block_sums
from clair_cli.maths.factors.roots import half_factors

STACKINGS = ("matrix", "output", "input")


@dataclass(frozen=True)
class PairTable:
    """One stacking's similarity of every pair of clients in a batch of modules.

    Attributes:
        value: shape (n_modules, n_clients, n_clients), NaN where a delta weight is zero.
        null: same shape; the value of unrelated delta weights with these spectra.
    """

    value: Tensor
    null: Tensor

    def rows(self, rows: slice) -> PairTable:
        """The pairs of some clients with all others, (n_modules, n_rows, n_clients)."""
        return PairTable(self.value[:, rows], self.null[:, rows])

    def cpu(self) -> PairTable:
        """A copy on the CPU."""
        return PairTable(self.value.cpu(), self.null.cpu())


def unit_side(outer: Tensor, inner: Tensor, grams: Grams) -> Tensor:
    """Gram of the delta weights scaled to norm one and seen from one side, R x R.

    With `outer` = B'B and `inner` = AA' it is H = T' (B'B) T with T_k T_k' = A_k A_k' / |D_k|^2:
    block (j, k) of H is W_j' D_j' D_k W_k for orthonormal W, so the horizontal stack
    [D_1 ... D_K] has the singular values of H's square root (`output` stacking). With the
    arguments swapped, the same for the stack of the D_k' (`input` stacking).

    Returns:
        H, (n_modules, sum_rank, sum_rank); zero for a zero delta weight.
    """
    inverse = torch.where(grams.norms > 0, 1.0 / grams.norms, 0.0)
    return half_factors(inner, grams.ranks).scaled(inverse).congruent(outer)


def matrix_similarity(grams: Grams) -> PairTable:
    """Cosine of the delta weights of each pair, from the Grams.

    Returns:
        Values in -1 to 1, the diagonal 1, NaN where a delta weight is zero; nulls are 0.
    """
    inner = block_sums(grams.B * grams.A, grams.ranks)
    denominator = grams.norms[:, :, None] * grams.norms[:, None, :]
    value = torch.where(denominator > 0, inner / denominator, torch.nan).clamp(-1.0, 1.0)
    return PairTable(value, torch.zeros_like(value))


def subspace_similarity(products: Tensor, width: int) -> PairTable:
    """Similarity of the clients' column spaces, weighted by their spectra.

    Args:
        products: <D_j D_j', D_k D_k'> of delta weights of norm one: the squares of `unit_side`
            summed over each pair's block, (n_modules, n_clients, n_clients).
        width: out_features for the output stacking, in_features for the input one.
    """
    sizes = products.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()  # |D D'| at |D| = 1
    denominator = sizes[:, :, None] * sizes[:, None, :]
    alive = denominator > 0
    value = torch.where(alive, products / denominator, torch.nan).clamp(0.0, 1.0)
    null = torch.where(alive, 1.0 / (width * denominator), torch.nan).clamp(max=1.0)
    return PairTable(value, null)


@dataclass(frozen=True)
class Similarity:
    """Mean similarity over modules above the value for unrelated clients.

    Attributes:
        stacking: "matrix", "output" or "input".
        excess: shape (n_clients, n_clients), (value - null) / (1 - null) averaged over the
            modules in which both delta weights are nonzero; 0 is unrelated, 1 the same.
            NaN for a pair with no common module; the diagonal is 1.
        se: standard error of each mean over modules; NaN with fewer than two modules.
        n: number of modules behind each pair.
    """

    stacking: str
    excess: Tensor
    se: Tensor
    n: Tensor


def mean_similarity(stacking: str, table: PairTable) -> Similarity:
    """Average one stacking's similarity over all modules, with standard errors.

    Modules are taken in the order given (fixed by the caller: same sums, same bytes).
    """
    parts = [_means(table.rows(rows)) for rows in blocks(table.value.shape)]
    mean, se, n = (torch.cat(each) for each in zip(*parts, strict=True))
    identity = torch.eye(mean.shape[0], dtype=torch.bool)
    mean = torch.where(identity & (n > 0), 1.0, mean)
    se = torch.where(identity & (n > 0), 0.0, se)
    return Similarity(stacking, mean, se, n)


def _means(table: PairTable) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard error and number of known modules of some pairs, (n_rows, n_clients) each."""
    value, null = table.value, table.null
    excess = (value - null) / (1.0 - null).clamp_min(torch.finfo(null.dtype).tiny)
    known = ~torch.isnan(excess)
    n = known.sum(0)
    filled = torch.where(known, excess, 0.0)
    mean = torch.where(n > 0, filled.sum(0) / n.clamp_min(1), torch.nan)
    spread = torch.where(known, (excess - mean) ** 2, 0.0).sum(0) / (n - 1).clamp_min(1)
    se = torch.where(n > 1, (spread / n.clamp_min(1)).sqrt(), torch.nan)
    return mean, se, n
