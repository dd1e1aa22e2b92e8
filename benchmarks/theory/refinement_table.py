"""What `refinement.py` measures in a row, and its table as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

ERRORS = ("mean", "merged", "formula", "choice", "part")


@dataclass(frozen=True)
class Case:
    """One curve: everything but the heterogeneity."""

    kind: str
    side: str
    n_clients: int
    noise: float
    draws: int

    @property
    def title(self) -> str:
        return f"{self.kind:6} {self.side:6} {self.n_clients:3} {self.noise:5.2f}"


@dataclass
class Row:
    """One line of the table: sums over the draws, one number per refined benign client in each
    list; `errors` are ratios to the local error."""

    case: Case
    apart: float
    errors: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ERRORS})
    better: list[bool] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    odd: int = 0
    odd_out: int = 0
    gone: int = 0
    undetermined: int = 0

    def error(self, name: str) -> float:
        """Mean ratio; NaN where no client was refined."""
        return average(self.errors[name])

    @property
    def worst(self) -> float:
        return max(self.errors["choice"], default=math.nan)

    def numbers(self) -> dict[str, object]:
        """For the JSON file; None where no client was refined."""
        found: dict[str, object] = {
            **dataclasses.asdict(self.case), "apart": self.apart, "measured": len(self.kept),
            "odd": self.odd, "odd_out": self.odd_out, "gone": self.gone,
            "undetermined": self.undetermined,
        }  # fmt: skip
        shares: dict[str, Sequence[float]] = {
            "better": self.better,
            "local": self.kept,
            "lost": self.lost,
        }
        for name, values in (*shares.items(), *self.errors.items()):
            found[name] = average(values) if values else None
        found["worst"] = self.worst if self.kept else None
        return found


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def measured_crossing(rows: Sequence[Row]) -> float | None:
    """Where the formula's mean ratio first passes 1, linear between rows; None if it does not."""
    points = [(row.apart, row.error("formula")) for row in rows if row.kept]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < 1.0 <= y1:
            return x0 + (1.0 - y0) / (y1 - y0) * (x1 - x0)
    return None


HEADER = (
    f"{'kind   side     K noise':24} {'apart':>5} {'mean':>7} {'merged':>7} {'formula':>7} "
    f"{'choice':>7} {'part':>6} {'better':>6} {'local':>5} {'lost':>6} {'worst':>6} "
    f"{'odd':>5} {'gone':>4} {'undet':>5}"
)


def line(row: Row) -> str:
    """One line of the table."""
    mean, merged, formula, choice, part = (row.error(name) for name in ERRORS)
    odd = f"{row.odd_out}/{row.odd}"
    return (
        f"{row.case.title:24} {row.apart:5.2f} {mean:7.2f} {merged:7.2f} {formula:7.3f} "
        f"{choice:7.3f} {part:6.3f} {average(row.better):6.2f} {average(row.kept):5.2f} "
        f"{average(row.lost):6.3f} {row.worst:6.3f} {odd:>5} {row.gone:4} {row.undetermined:5}"
    )


def summary(rows: Sequence[Row]) -> list[str]:
    """The claim, one line per kind."""
    lines = []
    for kind in dict.fromkeys(row.case.kind for row in rows):
        of_kind = [row for row in rows if row.case.kind == kind and row.kept]
        worst = max((row.worst for row in of_kind), default=math.nan)
        gain = 1.0 - average([row.error("choice") for row in of_kind if row.apart <= 0.5])
        lines.append(
            f"{kind}: worst choice/local {worst:.4f} over {sum(len(r.kept) for r in of_kind)} "
            f"clients; mean gain {gain:.1%} where apart is at most 0.5"
        )
    return lines
