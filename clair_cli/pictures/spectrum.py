"""The spectrum of the clients' similarities, beside what chance alone reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from clair_cli.pictures.numbers import held
from clair_cli.report.model import Report

_MOST_VALUES = 40


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues.

    Attributes:
        values: the largest ones, descending.
        count: how many there are in all.
        chance: the largest value of clients that share nothing, about; None where it is unknown.
    """

    values: tuple[float, ...]
    count: int
    chance: float | None


def spectrum(report: Report) -> Spectrum | None:
    """The spectrum; None where the report has none.

    The edge of chance is Wigner's, of a symmetric table whose entries have the similarities' median
    standard error: 1 + 2 se sqrt(n).
    Source: E. P. Wigner, "On the distribution of the roots of certain symmetric matrices", Annals
    of Mathematics 67, 1958.
    """
    found = report.cohort.spectrum
    if len(found) < 2:
        return None
    table = report.cohort.similarity_se
    errors = [
        e for j, row in enumerate(table) for k, e in enumerate(row) if j != k and e is not None
    ]
    chance = 1 + 2 * held(median(errors)) * math.sqrt(len(found)) if errors else None
    values = tuple(held(value) for value in found[:_MOST_VALUES])
    return Spectrum(values, len(found), chance)
