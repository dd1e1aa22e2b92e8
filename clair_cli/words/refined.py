"""What a refinement did, and what it gains, in words."""

from __future__ import annotations

from statistics import median

from clair_cli.report.results import RefinedReport

_SIDES = {
    "output": "on the output side of their updates",
    "input": "on the input side of their updates",
    "both": "on both sides of their updates",
}


def refined_words(refined: RefinedReport) -> str:
    """What was done to the clients, and how much that gains; without a full stop."""
    done = f"what the clients do not share is averaged {_SIDES.get(refined.side, '')}".rstrip()
    kept = sum(client.kept_local for client in refined.clients)
    parts = [done, _gain(refined)]
    if kept:
        parts.append(f"{kept} kept as they are, as refinement is not sure to help")
    return "; ".join(parts)


def _gain(refined: RefinedReport) -> str:
    gains = [client.gain for client in refined.clients if client.gain is not None]
    better = [gain for gain in gains if gain > 0]
    if better:
        return f"that takes about {median(better):.0%} off a client's error"
    if gains:
        return "no gain is expected"
    return (
        "how much that gains can't be known without --noise, or --weights with the numbers of"
        " examples"
    )
