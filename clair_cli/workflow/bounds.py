"""Upper bounds of the norms of results, from the norms that the clients were judged by: a larger
result is a fault of this program."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clair_cli.maths.factors.grams import LEAST_NORM, VANISHING
from clair_cli.maths.factors.lowrank import tail_norm
from clair_cli.workflow.judge import JudgedRound

# Share by which a norm may exceed its bound, for rounding errors in the singular values.
TOLERANCE = 1e-6
# Rounding errors of a sum in float32, over the norm of what is added to it and taken away again.
_FLOAT32 = 1e-6


def largest_sums(judged: JudgedRound) -> dict[str, float]:
    """Largest norm that the merged delta weight can have in each module, weight units: the weighted
    sum of the norms that the clients were judged by, with their rounding errors added."""
    sizes, summed, evidence = judged.sizes, judged.summed, judged.evidence
    assert sizes is not None and evidence is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        added = before
        if summed.initial:
            norms, before, added = _differences(judged, i), 0.0, _FLOAT32 * before
        for k in judged.minority if m in judged.projected else ():
            norms[k] = float(evidence.norms[i, k]) + added  # a projection of the difference
        found[m] = math.fsum(
            judged.weights[k] * (norms[k] if m in summed.adapters[k].modules else before)
            for k in judged.merged
        )
    return found


def largest_refined(judged: JudgedRound) -> dict[str, list[float]]:
    """Largest norms that the refined delta weights of the merged clients can have in each module,
    weight units. A refined delta weight is the sum of a projection of the client's own, one of the
    mean that is orthogonal to it, and the previous adapter."""
    sizes, summed, evidence = judged.sizes, judged.summed, judged.evidence
    assert sizes is not None and evidence is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        if summed.previous is not None:
            norms, before = _differences(judged, i), 0.0 if summed.initial else before
        mean = math.fsum(judged.weights[k] * norms[k] for k in judged.merged)
        found[m] = [math.hypot(norms[k], mean) + before for k in judged.merged]
    return found


def _differences(judged: JudgedRound, module: int) -> list[float]:
    """Norms of the clients' differences to the previous adapter in one module, with rounding errors
    added; weight units."""
    sizes, evidence = judged.sizes, judged.evidence
    assert sizes is not None and evidence is not None
    lost = sizes.components[module].add(float(sizes.previous_norms[module]))
    norms: list[float] = (evidence.norms[module] + VANISHING[torch.float64] * lost).tolist()
    return norms


def check_sum(module: str, values: Tensor, most: float) -> None:
    """Check that a delta weight that will be written is no larger than its bound.

    Args:
        module: its name, for the error.
        values: singular values of the delta weight.
        most: largest norm that it can have, weight units.

    Raises:
        ArithmeticError: it is larger: a fault of this program.
    """
    norm = tail_norm(values, 0)
    if not norm <= most * (1.0 + TOLERANCE) + LEAST_NORM:
        raise ArithmeticError(
            f"module {module!r}: the result's norm is {norm:.9g}, and at most {most:.9g} was judged"
        )
