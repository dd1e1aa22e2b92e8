"""Rounds whose verdicts would mean nothing, because the previous adapter is missing or is not the
one that the clients started from.

Every limit is on a median over clients: one client alone can't stop a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from clair_cli.cohort.choose import started_from
from clair_cli.cohort.round import Round
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.own_sizes import OwnSizes
from clair_cli.maths.judge.outcome import NoVerdict
from clair_cli.maths.judge.structure import joint_cosine

# Median client's median cosine to the others from which on a previous adapter seems to be missing:
# unrelated delta weights on top of a common adapter of three times their size have cosine 0.9, of
# twice their size 0.8. Contaminated clients, if they are fewer than half, do not change it.
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


def wrong_previous(
    round_: Round, evidence: Evidence, sizes: OwnSizes, distinct: Sequence[int], *, fresh: bool
) -> NoVerdict | None:
    """Why the previous adapter, or that there is none, leaves no honest verdict; else None, as for
    fewer than three clients.

    Args:
        sizes: of the clients' own delta weights.
        distinct: clients with one vote each: copies of one update are nearly the same wherever
            they started.
        fresh: whether the clients are known to have started from a fresh adapter, so that being
            nearly the same is real agreement.
    """
    if len(round_.adapters) < 3:
        return None
    cosine = joint_cosine(evidence)
    if round_.previous is None:
        votes = list(distinct)
        return None if fresh or len(votes) < 3 else _same_start(cosine[votes][:, votes])
    option = started_from(round_.initial)
    return _cancels(cosine, option) or _absent(_present(round_, evidence, sizes), option)


def _same_start(cosine: Tensor) -> NoVerdict | None:
    n = len(cosine)
    others = [sorted(float(cosine[k, j]) for j in range(n) if j != k) for k in range(n)]
    # the lower one of two medians: of three or four clients one may lie between all others
    typical = sorted(row[(n - 2) // 2] for row in others)[(n - 1) // 2]
    if typical < ALIKE:
        return None
    return (
        "same_start",
        f"the clients are nearly the same (median cosine {typical:.2f}), as they are when all "
        "started from the last merged adapter, and what each has added to it does not show",
        "give the adapter that they started from with --previous; if they started from a fresh "
        "one, so that they do agree, say so with --fresh",
    )


def _cancels(cosine: Tensor, option: str) -> NoVerdict | None:
    others = sorted((cosine.sum(1) - cosine.diagonal()).tolist())
    if others[len(cosine) // 2] > CANCELLED:
        return None
    return (
        "previous_cancels",
        f"what the clients added to the {option} adapter cancels out, as it does when that is "
        "what they merge to themselves",
        _remedy(option),
    )


def _absent(present: float | None, option: str) -> NoVerdict | None:
    if present is None or present >= PRESENT:
        return None
    return (
        "previous_absent",
        f"the clients have little of the {option} adapter in them (typically {present:.2f} of "
        "it), so that most of what is compared is what it takes away from all",
        _remedy(option),
    )


def _remedy(option: str) -> str:
    right = f"give the adapter that they started from with {option}"
    if option == "--initial":  # without it such clients are rejected
        return f"{right}, before any training"
    return f"{right}, or leave it out if they started from a fresh one"


def _present(round_: Round, evidence: Evidence, sizes: OwnSizes) -> float | None:
    """<D_k, P> / <P, P> of the median client, over some modules that client k and the previous
    adapter P both have; None where it is not a finite number for any client.

    2 <D_k, P> = |D_k|^2 + |P|^2 - |D_k - P|^2.
    """
    assert round_.previous is not None
    row = {module: n for n, module in enumerate(round_.module_shapes)}
    names = [m for m in sorted(round_.previous.modules) if m in row]
    sums = [[0.0, 0.0] for _ in round_.adapters]
    for module in names[:: max(1, len(names) // _MODULES)][:_MODULES]:
        size = float(sizes.previous_norms[row[module]].square())
        own, less = sizes.norms[row[module]].square(), evidence.norms[row[module]].square()
        shared = ((own + size - less) / 2).tolist()
        for k, (both, adapter) in enumerate(zip(sums, round_.adapters, strict=True)):
            if module in adapter.modules:
                both[0] += shared[k]
                both[1] += size
    shares = [shared / size for shared, size in sums if 0.0 < size < math.inf]
    known = sorted(share for share in shares if math.isfinite(share))
    return known[len(known) // 2] if known else None
