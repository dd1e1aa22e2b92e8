"""Whether the previous adapter is missing, or another one than that the clients started from.

Only remarks: neither can be known for sure, and nobody's upload may stop a round by them.
"""

from __future__ import annotations

import math

from clair_cli.cohort.round import Round
from clair_cli.engine.factors import factors_of, previous_of
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.factors.lowrank import inner
from clair_cli.maths.judge.structure import joint_cosine
from clair_cli.maths.merge.mean import weighted_sum

# Unrelated updates on top of a common adapter three times their size have cosine 0.9, twice
# their size 0.8. The median pair counts: some contaminated clients don't hide it.
ALIKE = 0.75
# Sum of a client's cosines to all others, for the median client: -1 where all updates sum to
# nothing. Opposite clients, if they are fewer than half, leave it at 0 and above.
CANCELLED = -0.5
# How much of the previous adapter the median client has in it: 1 where its update is unrelated to
# that, 0 where it started from another one.
PRESENT = 0.5
# Modules that are looked at for that.
_MODULES = 4


def previous_remarks(round_: Round, evidence: Evidence) -> tuple[str, ...]:
    """What a reader must know before the verdicts are believed; nothing for fewer than three."""
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
    """<D_k, P> / <P, P> over some modules that client k and the previous adapter P have, for the
    median client; None where that says nothing."""
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
