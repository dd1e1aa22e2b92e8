"""The largest damage that an oracle lets through, as a function of one strength.

The oracle judges an attack of strength gamma and says at which level it was noticed. Levels need
not be monotone in gamma: an attack may be noticed when weak and slip through when strong. So a
grid is tried in full first, then the edges of the regions that matter are bisected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# What the judgement said of the attackers, from harmless to noticed.
BENIGN, MERGED, FLAGGED, REFUSED = 0, 1, 2, 3
LEVELS = ("benign", "merged", "flagged", "undetermined")


@dataclass(frozen=True)
class Trial:
    """One judged attack.

    Attributes:
        gamma: strength, above 0.
        level: BENIGN (all attackers are `benign`), MERGED (all benign or suspicious), FLAGGED
            (some are left out) or REFUSED (undetermined: nothing is merged).
        damage: distance of the merge from the honest mean over that mean's norm, at least 0;
            0 when nothing is merged.
        shift: its part along the attack's direction, signed.
        verdicts: of the attackers, sorted, without repeats, joined by "/".
        accused: honest clients left out.
    """

    gamma: float
    level: int
    damage: float
    shift: float = 0.0
    verdicts: str = ""
    accused: int = 0


Oracle = Callable[[float], Trial]


def geometric(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` (two or more) strengths from `low` to `high` at equal ratios."""
    return tuple(low * (high / low) ** (i / (count - 1)) for i in range(count))


class Search:
    """All trials of one attack, each strength judged once.

    Args:
        oracle: judges one strength.
        grid: rising strengths that are always tried.
        halvings: of the interval between a strength let through and the next one noticed.
    """

    def __init__(self, oracle: Oracle, grid: Sequence[float], halvings: int) -> None:
        self._oracle, self._halvings = oracle, halvings
        self._trials: dict[float, Trial] = {}
        for gamma in grid:
            self._judge(gamma)

    @property
    def trials(self) -> list[Trial]:
        """Every trial so far, by rising strength."""
        return [self._trials[gamma] for gamma in sorted(self._trials)]

    def _judge(self, gamma: float) -> Trial:
        if gamma not in self._trials:
            self._trials[gamma] = self._oracle(gamma)
        return self._trials[gamma]

    def worst(self, level: int) -> Trial | None:
        """The trial with the largest damage that is noticed at `level` at most.

        Bisects above the strongest one let through and above the most damaging one (they are
        the same one if levels are monotone); the edge found is the lower end of its interval.
        Ties go to the weaker attack.
        """
        through = [t for t in self.trials if t.level <= level]
        if not through:
            return None
        starts = {through[-1].gamma, max(through, key=lambda t: t.damage).gamma}
        for start in sorted(starts):
            above = [t for t in self.trials if t.gamma > start]
            if above and above[0].level > level:
                self._bisect(start, above[0].gamma, level)
        return max((t for t in self.trials if t.level <= level), key=lambda t: t.damage)

    def _bisect(self, low: float, high: float, level: int) -> None:
        for _ in range(self._halvings):
            middle = (low * high) ** 0.5
            if self._judge(middle).level <= level:
                low = middle
            else:
                high = middle
