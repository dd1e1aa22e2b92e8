"""How large a result can be, by what its clients were judged by: nothing sums to more."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import LEAST_NORM, VANISHING
from clair_cli.maths.factors.lowrank import tail_norm
from clair_cli.workflow.judge import JudgedRound

# By how much of itself a merged norm may be above the clients': of rounding in its singular values.
TOLERANCE = 1e-6


def largest_sums(judged: JudgedRound) -> dict[str, float]:
    """Largest norm that the merged delta weight can have in each module: the weighted sum of the
    norms that its clients were judged by, and what rounding may have taken from these."""
    sizes, summed = judged.sizes, judged.summed
    assert sizes is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        found[m] = math.fsum(
            judged.weights[k] * (norms[k] if m in summed.adapters[k].modules else before)
            for k in judged.merged
        )
    return found


def largest_refined(judged: JudgedRound) -> dict[str, list[float]]:
    """Largest norms that the refined delta weights of the clients with a weight can have in each
    module: projections of the client's own and of the mean, which are orthogonal to each other, on
    top of the previous adapter's."""
    sizes, summed, evidence = judged.sizes, judged.summed, judged.evidence
    assert sizes is not None and evidence is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        if summed.previous is not None:  # norms of differences, and what rounding takes from them
            lost = VANISHING[torch.float64] * sizes.components[i].add(before)
            norms = (evidence.norms[i] + lost).tolist()
        mean = math.fsum(judged.weights[k] * norms[k] for k in judged.merged)
        found[m] = [math.hypot(norms[k], mean) + before for k in judged.merged]
    return found


def check_sum(module: str, values: Tensor, most: float) -> None:
    """Make sure that nothing that is written sums to more than was judged.

    Args:
        values: singular values of what will be written.
        most: the largest norm that it can have.

    Raises:
        ArithmeticError: it is larger: a fault of this program.
    """
    norm = tail_norm(values, 0)
    if not norm <= most * (1.0 + TOLERANCE) + LEAST_NORM:
        raise ArithmeticError(
            f"module {module!r}: the result's norm is {norm:.9g}, and at most {most:.9g} was judged"
        )
