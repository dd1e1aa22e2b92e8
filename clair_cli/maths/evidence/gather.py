"""Evidence of a batch of modules about the clients: a pure function of the batch's tensors.

Every module is reduced to norms, three tables of all pairs of clients, and a small two-sided core
per client. Only these numbers of different modules are combined, so a batch can run on a GPU, in a
thread or on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clair_cli.maths.evidence.pair_levels import PairLevels, excess_table
from clair_cli.maths.evidence.similarity import (
    PairTable,
    matrix_similarity,
    subspace_similarity,
    unit_side,
)
from clair_cli.maths.factors.block_diagonal import BlockDiagonal
from clair_cli.maths.factors.grams import Grams, block_sums
from clair_cli.maths.factors.stack import same_rank

# Rows and columns of a two-sided core: leading directions of the output and of the input side.
CORE_DIM = 16
# Steps of the subspace iteration that finds these directions, two products each.
POWERS = 4
# Largest entry of |Q'Q - I| of a basis Q that counts as orthonormal.
_ORTHOGONAL = 1e-10


@dataclass(frozen=True)
class Evidence:
    """Pairwise numbers and cores of some modules, in a fixed order of clients.

    Attributes:
        norms: Frobenius norm of each delta weight, (n_modules, n_clients).
        matrix, output, input: similarities in each stacking, and their values for unrelated
            clients.
        cores: P' (D_k / ||D_k||) Q on the leading dimensions of all clients' output and input
            spaces, (n_modules, n_clients, CORE_DIM, CORE_DIM), zero padded.
        effective_ranks: ||D||^4 / ||D D'||^2, at least 1; how many equal directions would
            hold the same energy; NaN for a zero delta weight, (n_modules, n_clients).
    """

    norms: Tensor
    matrix: PairTable
    output: PairTable
    input: PairTable
    cores: Tensor
    effective_ranks: Tensor
    _levels: dict[str, PairLevels] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def levels(self, stacking: str) -> PairLevels:
        """Similarities of pairs above chance in one stacking; computed at the first call.

        Args:
            stacking: "matrix", "output" or "input".
        """
        if stacking not in self._levels:
            table = self.table(stacking)
            self._levels[stacking] = PairLevels(excess_table([table.value], [table.null]))
        return self._levels[stacking]

    def inner_products(self) -> Iterator[Tensor]:
        """Inner products of all pairs of delta weights, module by module, (n_clients, n_clients);
        0 where a delta weight is zero."""
        for cosines, norms in zip(self.matrix.value, self.norms, strict=True):
            yield torch.nan_to_num(cosines, nan=0.0) * norms[:, None] * norms[None, :]

    def cpu(self) -> Evidence:
        """A copy on the CPU."""
        return Evidence(
            self.norms.cpu(), self.matrix.cpu(), self.output.cpu(), self.input.cpu(),
            self.cores.cpu(), self.effective_ranks.cpu(),
        )  # fmt: skip

    def table(self, stacking: str) -> PairTable:
        """The table of one stacking: "matrix", "output" or "input"."""
        return {"matrix": self.matrix, "output": self.output, "input": self.input}[stacking]


def gather(pair: Grams) -> Evidence:
    """Reduce a batch of modules of one shape to the evidence that the judge needs.

    Args:
        pair: the Grams of all clients, on any device.

    Returns:
        Numbers that depend on the delta weights only, not on the factors' gauge; on the CPU.
    """
    output, output_root = unit_side(pair.B, pair.A, pair)
    input_, input_root = unit_side(pair.A, pair.B, pair)
    products = [block_sums(side * side, pair.ranks) for side in (output, input_)]
    energy = products[0].diagonal(dim1=1, dim2=2)
    return Evidence(
        pair.delta_norms,
        matrix_similarity(pair),
        subspace_similarity(products[0], pair.shape[0]),
        subspace_similarity(products[1], pair.shape[1]),
        _two_sided_cores(
            pair,
            _leading_directions(output, output_root, pair.sketch_B),
            _leading_directions(input_, input_root, pair.sketch_A),
        ),
        torch.where(pair.norms > 0, 1.0 / energy.clamp_min(1e-300), torch.nan),
    ).cpu()


def _leading_directions(gram: Tensor, root: BlockDiagonal, sketch: Tensor | None) -> Tensor:
    """Coordinates of a side's leading orthonormal directions on its factors,
    (n_modules, sum_rank, CORE_DIM or less)."""
    values, vectors = torch.linalg.eigh(gram) if sketch is None else _iterated(gram, root, sketch)
    top = min(CORE_DIM, gram.shape[1])
    values, vectors = values[:, -top:].flip(-1), vectors[:, :, -top:].flip(-1)
    alive = values > 1e-12 * values[:, :1].clamp_min(1e-300)
    scale = torch.where(alive, values.clamp_min(1e-300).rsqrt(), 0.0)
    return root.times(vectors * scale[:, None, :])


def _iterated(gram: Tensor, root: BlockDiagonal, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, ascending, and eigenvectors of a Gram, by subspace iteration.

    The start is a sketch of the delta weights, so that directions that have not converged (where
    the spectrum is flat, any direction is as good) do not depend on the factors' gauge.

    Source: N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", SIAM Review
    53(2), 2011, algorithm 4.4.
    """
    start, losses = gram @ root.mT.times(sketch), []

    def fast(columns: Tensor) -> Tensor:
        basis, lost = orthonormal(columns)
        losses.append(lost)
        return basis

    def iterated(basis_of: Callable[[Tensor], Tensor]) -> Tensor:
        basis = basis_of(start)
        for _ in range(POWERS):
            basis = basis_of(gram @ (gram @ basis))
        return basis

    basis = None if gram.device.type == "cpu" else iterated(fast)
    if basis is None or not float(torch.stack(losses).amax()) < _ORTHOGONAL:
        basis = iterated(lambda columns: torch.linalg.qr(columns).Q)
    values, rotation = torch.linalg.eigh(basis.mT @ gram @ basis)
    return values, basis @ rotation


def orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the span of `columns`, by products and small factorisations only,
    which a GPU computes for all modules at once.

    Args:
        columns: (..., n, k), k <= n.

    Returns:
        The basis Q, (..., n, k), and the largest entry of |Q'Q - I|; infinity where the columns are
        too ill-conditioned for this method.

    Source: T. Fukaya and others, "Shifted Cholesky QR for computing the QR factorization of
    ill-conditioned matrices", SIAM J. Sci. Comput. 42(1), 2020.
    """
    n, k = columns.shape[-2:]
    unit = torch.eye(k, dtype=columns.dtype, device=columns.device)
    shift = 11 * (n * k + k * (k + 1)) * torch.finfo(columns.dtype).eps
    for share in (shift, 0.0, 0.0):
        square = columns.mT @ columns
        trace = square.diagonal(dim1=-2, dim2=-1).sum(-1)
        lower, _ = torch.linalg.cholesky_ex(square + share * trace[..., None, None] * unit)
        columns = torch.linalg.solve_triangular(lower, columns.mT, upper=False).mT
    lost = (columns.mT @ columns - unit).abs().amax()
    return columns, torch.where(lost >= 0, lost, torch.inf)  # NaN is not


def _two_sided_cores(pair: Grams, output_basis: Tensor, input_basis: Tensor) -> Tensor:
    """P' (D_k / ||D_k||) Q of every client, (n_modules, n_clients, CORE_DIM, CORE_DIM).

    Args:
        output_basis, input_basis: coordinates of P and Q on the factors, from
            `_leading_directions`.
    """
    left = output_basis.mT @ pair.B  # P'B: (n_modules, top, sum_rank)
    right = pair.A @ input_basis  # AQ: (n_modules, sum_rank, top)
    inverse = torch.where(pair.norms > 0, 1.0 / pair.norms, 0.0)[:, :, None, None]
    n_modules, n_clients, top = len(left), len(pair.ranks), (left.shape[1], right.shape[2])
    cores = left.new_zeros(n_modules, n_clients, CORE_DIM, CORE_DIM)
    if same_rank(pair.ranks):
        rows = left.view(n_modules, top[0], n_clients, -1).transpose(1, 2)
        found = rows @ right.view(n_modules, n_clients, -1, top[1])
    else:
        ranks = list(pair.ranks)
        sides = zip(torch.split(left, ranks, dim=2), torch.split(right, ranks, dim=1), strict=True)
        found = torch.stack([one @ other for one, other in sides], dim=1)
    cores[:, :, : top[0], : top[1]] = found * inverse
    return cores


def concatenate(parts: Sequence[Evidence], order: Sequence[int]) -> Evidence:
    """Join batches, then put the modules into the given order (by name: same sums, same bytes)."""
    index = torch.tensor(list(order))

    def tables(name: str) -> PairTable:
        chosen = [part.table(name) for part in parts]
        return PairTable(
            torch.cat([t.value for t in chosen])[index], torch.cat([t.null for t in chosen])[index]
        )

    return Evidence(
        torch.cat([p.norms for p in parts])[index],
        tables("matrix"), tables("output"), tables("input"),
        torch.cat([p.cores for p in parts])[index],
        torch.cat([p.effective_ranks for p in parts])[index],
    )  # fmt: skip
