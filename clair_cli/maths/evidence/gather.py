"""Evidence of a batch of modules about the clients: a pure function of the batch's tensors.

Every module is reduced to norms, effective ranks and three tables of all pairs of clients. Only
these numbers of different modules are combined, so a batch can run on a GPU, in a thread or on
another machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clair_cli.maths.evidence.beside import BesideSums, beside_sums
from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.evidence.similarity import (
    STACKINGS,
    PairTable,
    matrix_similarity,
    subspace_similarity,
    unit_side,
)
from clair_cli.maths.evidence.tables import Allocate, in_memory
from clair_cli.maths.factors.grams import Grams, block_sums


@dataclass(frozen=True)
class Evidence:
    """Norms, spectra and pairwise numbers of some modules, in a fixed order of clients.

    Attributes:
        norms: Frobenius norm of each delta weight, (n_modules, n_clients).
        matrix, output, input: similarities in each stacking, and their values for unrelated
            clients.
        effective_ranks: ||D||^4 / ||D D'||^2, at least 1; how many equal directions would
            hold the same energy; NaN for a zero delta weight, (n_modules, n_clients).
        beside: what pairs share beside the direction that all take, summed over these modules;
            None where it is not known.
        allocate: makes the memory for more tables of all pairs.
    """

    norms: Tensor
    matrix: PairTable
    output: PairTable
    input: PairTable
    effective_ranks: Tensor
    beside: BesideSums | None = None
    allocate: Allocate = field(default=in_memory, repr=False, compare=False)
    _levels: dict[str, PairLevels] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def levels(self, stacking: str) -> PairLevels:
        """Similarities of pairs above chance in one stacking; computed at the first call.

        Args:
            stacking: "matrix", "output" or "input".
        """
        if stacking not in self._levels:
            self._levels[stacking] = PairLevels(self.table(stacking), self.allocate)
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
            self.effective_ranks.cpu(), self.beside and self.beside.cpu(),
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
    products = []
    for outer, inner in ((pair.B, pair.A), (pair.A, pair.B)):
        side = unit_side(outer, inner, pair)
        products.append(block_sums(side * side, pair.ranks))
    energy = products[0].diagonal(dim1=1, dim2=2)
    return Evidence(
        pair.delta_norms,
        matrix_similarity(pair),
        subspace_similarity(products[0], pair.shape[0]),
        subspace_similarity(products[1], pair.shape[1]),
        torch.where(pair.norms > 0, 1.0 / energy.clamp_min(1e-300), torch.nan),
        beside_sums(pair),
    ).cpu()


def collected(
    parts: Iterable[tuple[Sequence[int], Evidence]], n_modules: int, allocate: Allocate = in_memory
) -> Evidence:
    """Join batches as they come; each is dropped when its numbers are in their place.

    Args:
        parts: the rows that a batch's modules have in the result, and its evidence.
        n_modules: of all batches together, at least 1.
    """
    found: list[Tensor] = []
    beside: BesideSums | None = None
    for rows, part in parts:
        beside = part.beside if beside is None else beside.plus(part.beside)
        tensors = _tensors(part)
        if not found:
            found = [allocate((n_modules, *t.shape[1:]), t.dtype) for t in tensors]
        for whole, tensor in zip(found, tensors, strict=True):
            whole[list(rows)] = tensor
    norms, ranks, *tables = found
    matrix, output, input_ = (PairTable(*tables[i : i + 2]) for i in (0, 2, 4))
    return Evidence(norms, matrix, output, input_, ranks, beside, allocate)


def _tensors(part: Evidence) -> list[Tensor]:
    pairs = [t for s in STACKINGS for t in (part.table(s).value, part.table(s).null)]
    return [part.norms, part.effective_ranks, *pairs]
