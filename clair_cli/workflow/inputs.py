"""Hashes of what is given beside the clients and changes the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from clair_cli.cohort.round import Round


def hashes_beside(round_: Round) -> dict[str, str]:
    """SHA-256 (hex) of the adapters and the weights beside a round's clients, by option."""
    start = "initial" if round_.initial else "previous"
    adapters = {start: round_.previous, "trust_adapter": round_.trust_adapter}
    found = {option: one.sha256 for option, one in adapters.items() if one is not None}
    if round_.weights is not None:
        found["weights"] = _hash_of_weights(dict(zip(round_.names, round_.weights, strict=True)))
    return found


def _hash_of_weights(weights: Mapping[str, float]) -> str:
    """SHA-256 of the comparable clients' weights as JSON, sorted by name and without spaces: the
    same for the same weights, however they are given."""
    text = json.dumps(
        {name: float(w) for name, w in weights.items()}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()
