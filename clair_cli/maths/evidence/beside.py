"""What two clients share beside the output direction that all training of a base model takes.

In a first round from a pretrained model the delta weights of a module have one leading output
direction in common, whoever trains and whatever the labels say, and most of their similarity is
that. So each module's delta weights lose the leading output direction u of the mean of all of them
(each of norm one),

    R_k = D_k - u u' D_k,

and pairs are compared by <R_j, R_k> / (|D_j| |D_k|), in deviations by chance: the variance between
unrelated delta weights with these sides is <R_j R_j', R_k R_k'> <R_j' R_j, R_k' R_k>, at norms |D|
of one (see `judge/pairs.py`). All follows from the Grams, and depends on no gauge.

The statistic: ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.evidence.similarity import unit_side
from clair_cli.maths.factors.grams import Grams, block_sums
from clair_cli.maths.factors.stack import owners

# Vectors of the subspace iteration and its steps: the error of u falls with the ratio of the ninth
# singular value of the mean to the first, to the power of twice the steps.
_VECTORS, _STEPS = 8, 12


@dataclass(frozen=True)
class BesideSums:
    """Sums over modules, of all pairs of n clients. A pair counts where both have a delta weight.

    Attributes:
        value: of the similarities, in deviations by chance of the module's median pair, (n, n).
        variance: of `value` between unrelated clients, (n, n).
        count: of modules, (n, n).
    """

    value: Tensor
    variance: Tensor
    count: Tensor

    def of(self, clients: Tensor) -> BesideSums:
        """Those of some clients, by index, in the order given."""
        return BesideSums(
            *(t[clients][:, clients] for t in (self.value, self.variance, self.count))
        )

    def plus(self, other: BesideSums | None) -> BesideSums:
        """The sums over the modules of both; None counts as no modules."""
        if other is None:
            return self
        return BesideSums(
            self.value + other.value, self.variance + other.variance, self.count + other.count
        )

    def cpu(self) -> BesideSums:
        """A copy on the CPU."""
        return BesideSums(self.value.cpu(), self.variance.cpu(), self.count.cpu())


def beside_sums(pair: Grams) -> BesideSums:
    """Compare a batch of modules beside their leading output directions.

    Args:
        pair: the Grams of all clients, on any device.
    """
    if not pair.B.shape[1]:  # nobody has these modules
        none = pair.norms.new_zeros(len(pair.ranks), len(pair.ranks)).cpu()
        return BesideSums(none, none, none)
    seen = _leading_output(pair)
    rest = replace(pair, B=pair.B - seen[:, :, None] * seen[:, None, :])
    inner = block_sums(rest.B * rest.A, pair.ranks)
    scale = torch.where(pair.norms > 0, 1.0 / pair.norms, torch.nan)
    output, input_ = unit_side(rest.B, rest.A, rest), unit_side(rest.A, rest.B, rest)
    return sums_of(
        inner * scale[:, :, None] * scale[:, None, :],
        block_sums(output * output, pair.ranks),
        block_sums(input_ * input_, pair.ranks),
        pair.shape,
    )


def sums_of(value: Tensor, output: Tensor, input_: Tensor, shape: tuple[int, int]) -> BesideSums:
    """The sums, from numbers of delta weights of norm one.

    Args:
        value: <R_j, R_k>, NaN where there is no delta weight, (n_modules, n, n).
        output, input_: <R_j R_j', R_k R_k'> and <R_j' R_j, R_k' R_k>, likewise. At least what
            independent directions have is counted.
        shape: (out_features, in_features).
    """
    energy = value.diagonal(dim1=1, dim2=2)
    least = energy[:, :, None] * energy[:, None, :]
    variance = torch.maximum(output, least / shape[0]) * torch.maximum(input_, least / shape[1])
    others = ~torch.eye(value.shape[1], dtype=torch.bool, device=value.device)
    unit = torch.where(others & (variance > 0), variance, torch.nan).flatten(1).nanmedian(1).values
    unit = unit.sqrt()[:, None, None]
    value, variance = value / unit, variance / unit.square()
    both = torch.isfinite(value) & torch.isfinite(variance) & others
    return BesideSums(
        torch.where(both, value, 0.0).sum(0), torch.where(both, variance, 0.0).sum(0),
        both.to(value.dtype).sum(0),
    ).cpu()  # fmt: skip


def beside_cores(cores: Tensor, alive: Tensor, shape: tuple[int, int]) -> BesideSums:
    """As `beside_sums`, of one module whose delta weights are given as small matrices.

    Args:
        cores: the delta weights of norm one in orthonormal coordinates, (n, height, width).
        alive: mask of those that are not zero, (n,).
        shape: of the delta weights, (out_features, in_features).
    """
    u = torch.linalg.svd(cores.mean(0), full_matrices=False).U[:, :1]
    rest = cores - u @ (u.mT @ cores)
    flat = rest.flatten(1)
    output, input_ = (rest @ rest.mT).flatten(1), (rest.mT @ rest).flatten(1)
    both = alive[:, None] & alive
    value = torch.where(both, flat @ flat.mT, torch.nan)
    return sums_of(value[None], (output @ output.mT)[None], (input_ @ input_.mT)[None], shape)


def _leading_output(pair: Grams) -> Tensor:
    """B'u of the unit vector u, the leading left singular vector of the mean of the clients' delta
    weights of norm one, (n_modules, sum_rank)."""
    owner = owners(pair.ranks, pair.B.device)
    weight = torch.where(pair.norms > 0, 1.0 / pair.norms, 0.0)[:, owner, None]
    n_modules, n = pair.B.shape[:2]
    start = torch.randn(n, min(n, _VECTORS), generator=torch.Generator().manual_seed(0))
    vectors = start.to(pair.B).expand(n_modules, -1, -1)
    for _ in range(_STEPS):  # u = B c, and M M'u = B weight A A' weight B'B c
        vectors, seen = _orthonormal(vectors, pair.B)
        vectors = weight * (pair.A @ (weight * seen))
    vectors, seen = _orthonormal(vectors, pair.B)
    weighted = weight * seen
    _, turn = torch.linalg.eigh(weighted.mT @ pair.A @ weighted)
    found: Tensor = (seen @ turn[:, :, -1:]).squeeze(2)
    return found


def _orthonormal(vectors: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors c turned so that the B c are orthonormal; and B'B c.

    Directions in which B c vanishes, of one rank or more than it has, become zero.
    """
    seen = gram @ vectors
    values, turn = torch.linalg.eigh(vectors.mT @ seen)
    largest = values[:, -1:].clamp_min(1e-300)
    scale = torch.where(values > 1e-12 * largest, values.clamp_min(1e-300).rsqrt(), 0.0)
    turn = turn * scale[:, None, :]
    return vectors @ turn, seen @ turn
