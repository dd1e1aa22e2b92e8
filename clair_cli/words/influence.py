"""Whom a client resembles, and what it does, or would have done, to the merge."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clair_cli.report.model import ClientReport, Report


@dataclass(frozen=True)
class Likeness:
    """Another client, and how like it one is.

    Attributes:
        share: similarity of the two, over the mean similarity of two of the cohort's group.
        width: two standard errors of it, or None.
    """

    other: ClientReport
    share: float
    width: float | None


def likenesses(client: ClientReport, report: Report) -> tuple[Likeness, ...]:
    """The other clients, the most similar one first; empty where nothing is comparable."""
    cohort = report.cohort
    level = cohort.level
    if level is None or not level > 0 or client.name not in cohort.names:
        return ()
    row = cohort.names.index(client.name)
    by_name = {c.name: c for c in report.clients}
    found = []
    for k, name in enumerate(cohort.names):
        value, se = cohort.similarity[row][k], cohort.similarity_se[row][k]
        if k != row and value is not None:
            width = None if se is None else 2 * se / level
            found.append(Likeness(by_name[name], value / level, width))
    return tuple(sorted(found, key=lambda one: (-one.share, one.other.name)))


@dataclass(frozen=True)
class Pull:
    """How far one client moves the merged delta weights.

    Attributes:
        weight: its share in the merge; for one left out, an equal share with those merged.
        moved: distance between the merges with it and without it, over the norm of the merge that
            was made; None where the report does not allow to say.
        merged: whether it is in the merge.
    """

    weight: float
    moved: float | None
    merged: bool


def pull(client: ClientReport, report: Report) -> Pull | None:
    """What a client did, or would have done, to the merge; None where nothing was merged.

    From its norm, its angle to the line of the others and the norm of the merge, so about right
    only: the line is that of the mean of the members, all with one weight.
    """
    merged = [c for c in report.clients if c.weight > 0]
    if report.merged is None or not merged or not client.modules:
        return None
    inside = client.weight > 0
    weight = client.weight if inside else 1 / (len(merged) + 1)
    if any(report.options.get(name) for name in ("previous", "initial")):
        return Pull(weight, None, inside)  # the merge holds what all started from
    if client.verdict == "minority" and report.options.get("minority") != "merge":
        return Pull(weight, None, inside)  # a part of it is merged, or nothing
    size, norm = client.scores.measures.get("norm"), report.merged.norm
    cosine = _cosine(client)
    if size is None or cosine is None or not norm > 0 or weight >= 1:
        return Pull(weight, None, inside)
    others = _others_norm(norm, size, weight, cosine) if inside else norm
    if others is None:
        return Pull(weight, None, inside)
    apart = math.sqrt(max(0.0, size**2 + others**2 - 2 * size * others * cosine))
    moved = weight * apart / norm
    return Pull(weight, moved if math.isfinite(moved) else None, inside)


def _cosine(client: ClientReport) -> float | None:
    """Of the client's delta weights to the mean of the other members."""
    off, loading = client.scores.off_line_ratio, client.scores.loading
    if off is None or loading is None:
        return None
    along = math.sqrt(max(0.0, 1.0 - off**2))
    return along if loading > 0 else -along


def _others_norm(norm: float, size: float, weight: float, cosine: float) -> float | None:
    """Norm of the merge of the others, a: (1-w)^2 a^2 + 2 w (1-w) c d a + w^2 d^2 = norm^2."""
    first, second = (1 - weight) ** 2, 2 * weight * (1 - weight) * cosine * size
    root = second**2 - 4 * first * ((weight * size) ** 2 - norm**2)
    return (math.sqrt(root) - second) / (2 * first) if root >= 0 else None
