"""What pictures of a round are drawn from, beside its verdicts: the line, the map, the spectrum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clair_cli.maths.evidence.plane import plane, spectrum
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.thresholds import LINE


def line_of(judgement: Judgement) -> tuple[float | None, float | None]:
    """The loading that a client must clearly fall short of, and by how many standard errors."""
    if not judgement.structure.groups:
        return None, None
    return LINE, judgement.structure.groups[0].loadings.bar


def map_of(
    similarity: Tensor, order: Sequence[int]
) -> tuple[tuple[tuple[float, float], ...], tuple[float, ...]]:
    """Where the clients lie, and the spectrum of their similarities.

    Args:
        similarity: in the order of the round, which follows the clients' contents: with other names
            not even a last digit is another.
        order: of the report, by name.
    """
    points = plane(similarity).tolist()
    return tuple((points[k][0], points[k][1]) for k in order), tuple(spectrum(similarity).tolist())
