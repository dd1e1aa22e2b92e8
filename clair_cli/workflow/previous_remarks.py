"""Remarks on a previous adapter that seems to be missing, or to be another adapter than the clients
started from.

They are only remarks: neither can be known for sure, and no client may be able to stop a round.
"""

from __future__ import annotations

import math

from clair_cli.cohort.round import Round
from clair_cli.engine.factors import factors_of, previous_of
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.factors.lowrank import inner
from clair_cli.maths.judge.structure import joint_cosine
from clair_cli.maths.merge.mean import weighted_sum

# Median cosine of the clients' pairs from which on a previous adapter seems to be missing:
# unrelated delta weights on top of a common adapter of three times their size have cosine 0.9, of
# twice their size 0.8. Some contaminated clients do not change the median.
ALIKE = 0.75
# Sum of a client's cosines to all others, of the median client, up to which the previous adapter
# seems to be the clients' own mean: the sum is -1 where all delta weights sum to zero. Opposite
# clients, if they are fewer than half, leave it at 0 and above.
CANCELLED = -0.5
# Share of the previous adapter that the median client should at least have in it: the share is 1
# where the client's difference is unrelated to the previous adapter, and 0 where the client started
# from another one.
PRESENT = 0.5
# Number of modules in which this share is computed.
_MODULES = 4


def previous_remarks(round_: Round, evidence: Evidence) -> tuple[str, ...]:
    """At most one remark, which a reader must know before believing the verdicts; none for fewer
    than three clients."""
    n = len(round_.adapters)
    if n < 3:
        return ()
    cosine = joint_cosine(evidence)
    if round_.previous is None:
        pairs = sorted(float(cosine[j, k]) for j in range(n) for k in range(j))
        typical = pairs[len(pairs) // 2]
        if typical < ALIKE:
            return ()
        return (
            f"the clients are nearly the same (median cosine {typical:.2f}): if they all started "
            "from the last merged adapter, give it with --previous, else the verdicts are about "
            "that one",
        )
    others = sorted((cosine.sum(1) - cosine.diagonal()).tolist())
    if others[n // 2] <= CANCELLED:
        return (
            "what the clients added to the --previous adapter cancels out, as it does when that is "
            "what they merge to themselves: give the one that they started from, else the verdicts "
            "mean nothing",
        )
    present = _present(round_)
    if present is None or present >= PRESENT:
        return ()
    return (
        f"the clients have little of the --previous adapter in them (typically {present:.2f} of "
        "it): if they started from a fresh one, leave --previous out, else the verdicts are about "
        "what it takes away from all",
    )


def _present(round_: Round) -> float | None:
    """<D_k, P> / <P, P> of the median client, over some modules that client k and the previous
    adapter P both have; None where it is not a finite number for any client."""
    assert round_.previous is not None
    names = [m for m in sorted(round_.previous.modules) if m in round_.module_shapes]
    sums = [[0.0, 0.0] for _ in round_.adapters]
    for module in names[:: max(1, len(names) // _MODULES)][:_MODULES]:
        shape = round_.module_shapes[module]
        before = weighted_sum([previous_of(round_, module)], [1.0], shape)
        size = inner(before, before)
        for both, adapter in zip(sums, round_.adapters, strict=True):
            if module in adapter.modules:
                delta = weighted_sum([factors_of(adapter, module)], [1.0], shape)
                both[0] += inner(delta, before)
                both[1] += size
    shares = [shared / size for shared, size in sums if 0.0 < size < math.inf]
    known = sorted(share for share in shares if math.isfinite(share))
    return known[len(known) // 2] if known else None
