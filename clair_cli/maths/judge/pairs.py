"""How alike pairs of clients are, over all modules, in units of what chance does.

Unrelated delta weights that use the same output and input directions, in whatever combination,
have a cosine of variance <D D', E E'> <D' D, E' E> for D and E of norm one ("pairing null"). Of
what two clients have in common of a side, the square of their cosine (the module's times the mean
over modules, which chance hardly moves) is explained by what they share of the whole: only the rest
is counted, and at least what independent directions have. Each module's cosines are divided by the
root of that variance, of its median pair, so that a module counts by how much it can tell, and
their mean has a known variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.tables import in_blocks


@dataclass(frozen=True)
class Pairs:
    """Similarities of n clients, means over the modules that both clients have.

    Attributes:
        value: in deviations by chance of one module; 0 where it is not known, (n, n).
        chance: variance of `value` between unrelated clients, (n, n).
        known: 1 where the clients have a quarter of the modules in common, else 0, as on the
            diagonal, (n, n).
        whole: `value` of a client and itself, the most it can share, (n,); None if not known.
    """

    value: Tensor
    chance: Tensor
    known: Tensor
    whole: Tensor | None = None

    def of(self, clients: Tensor) -> Pairs:
        """The pairs of some clients, by index, in the order given."""
        value, chance, known = (
            t[clients][:, clients] for t in (self.value, self.chance, self.known)
        )
        return Pairs(value, chance, known, None if self.whole is None else self.whole[clients])

    @cached_property
    def noise(self) -> float:
        """Median variance by chance of the known pairs; 0 if none is known."""
        known = self.chance[self.known > 0]
        return float(known.median()) if len(known) else 0.0


def variances_by_chance(evidence: Evidence, stacking: str = "matrix") -> Iterator[Tensor]:
    """Variance of each module's similarities between unrelated clients, see `pairs_of`; NaN where a
    delta weight is zero, (n_clients, n_clients) each. One module at a time: of a thousand clients a
    table of all modules is a gigabyte."""
    ranks = evidence.effective_ranks
    if stacking != "matrix":
        for null, rank in zip(evidence.table(stacking).null, ranks, strict=True):
            yield 2.0 * null.square() / torch.outer(rank, rank)
        return
    cosines, sides = evidence.matrix.value, (evidence.output, evidence.input)
    mean = in_blocks(lambda rows: cosines[:, rows].nanmean(0), cosines.shape)
    for m, rank in enumerate(ranks):
        explained = (cosines[m] * mean).clamp_min(0.0)
        output, input_ = (torch.maximum(t.value[m] - explained, t.null[m]) for t in sides)
        yield output * input_ / torch.outer(rank, rank)


def pairs_of(
    evidence: Evidence, stacking: str = "matrix", clients: Sequence[int] | None = None
) -> Pairs:
    """All pairs of clients in one stacking.

    Args:
        clients: whose pairs give the modules' units; None for all.
        stacking: "matrix" for cosines; "output" or "input" for the similarity of a side above its
            value by chance, whose variance is that of Haar distributed directions, 2 / width^2.
    """
    table = evidence.table(stacking)
    n = table.value.shape[1]
    others = ~torch.eye(n, dtype=torch.bool)
    chosen = torch.ones(n, dtype=torch.bool)
    if clients is not None:
        chosen = torch.isin(torch.arange(n), torch.tensor(list(clients)))
    asked = others & chosen & chosen[:, None]
    value, chance, count = (torch.zeros(n, n, dtype=table.value.dtype) for _ in range(3))
    if not bool(asked.any()):
        return Pairs(value, chance, count)
    used = 0
    for m, variance in enumerate(variances_by_chance(evidence, stacking)):
        unit = variance[asked].nanmedian().sqrt()
        if not (torch.isfinite(unit) and unit > 0):
            continue
        used += 1
        similar, variance = (table.value[m] - table.null[m]) / unit, variance / unit.square()
        both = torch.isfinite(similar) & torch.isfinite(variance)
        value += torch.where(both, similar, 0.0)
        chance += torch.where(both, variance, 0.0)
        count += both
    known = others & (4 * count >= used) & (count > 0)
    value, chance = value / count.clamp_min(1), chance / count.clamp_min(1).square()
    nothing = torch.zeros_like(value)
    return Pairs(
        torch.where(known, value, nothing), torch.where(known, chance, nothing),
        known.to(value.dtype), value.diagonal().clone(),
    )  # fmt: skip
