"""Single clients with a signature of their own, whom no similarity shows: nobody is like them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clair_cli.maths.judge.minority import MIN_OUTSIDE, Minority
from clair_cli.maths.judge.signature import Signatures
from clair_cli.maths.judge.thresholds import MINORITY_P


def odd_chances(signatures: Signatures, ratio: Tensor, members: Sequence[int]) -> dict[int, float]:
    """Bound on the probability that any member's signature is as unlike the others' as this one's
    is: `Signatures.odd` times the number of members, 0 to 1.

    Args:
        signatures: of all clients.
        ratio: the clients' loadings on what the members share, (n,).
    """
    chosen = torch.tensor(sorted(members))
    among, own = signatures.of(chosen), ratio[chosen]
    return {int(k): min(1.0, len(chosen) * among.odd(i, own)) for i, k in enumerate(chosen)}


def find_odd(
    signatures: Signatures, ratio: Tensor, members: Sequence[int], trusted: Sequence[int] = ()
) -> Minority | None:
    """The member with the clearest signature of its own as a minority of one, or None.

    Args:
        signatures, ratio: see `odd_chances`.
        trusted: members that are in no minority.
    """
    if len(members) < MIN_OUTSIDE + 1:
        return None
    chances = odd_chances(signatures, ratio, members)
    p, client = min(((p, k) for k, p in chances.items() if k not in trusted), default=(1.0, -1))
    return Minority((client,), p) if p < MINORITY_P else None
