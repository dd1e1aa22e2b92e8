"""Cohorts drawn from the pools of a seed: who is in each, fixed by the seed alone.

Every cohort belongs to one row of the table (``ROWS``). Which clients it has does not depend on
what has been trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from benchmarks.pools.settings import KINDS, Client, Setting, clients_of
from benchmarks.pools.store import seeded

ROWS = {
    "clean": "one population, one recipe, nobody bad",
    "populations": "two honest sub-populations, nobody bad",
    "recipes": "mixed learning rates and steps, nobody bad",
    "several": "at most 40 % bad, at least two alike",
    "single": "one bad client",
    "formulas": "attacks from formulas on two of ten clients",
    "majority-60": "60 % bad",
    "majority-80": "80 % bad",
    "trusted-60": "60 % bad, one honest client trusted",
    "trusted-80": "80 % bad, one honest client trusted",
    "all-bad": "everybody bad, nothing shared",
}
FORMULAS = ("flip-own", "ipm-0.5", "scale-10", "fresh-colluding", "noise-own", "free-mean")
MIXED_RECIPES = {"base": 4, "fast": 2, "slow": 2, "short": 2, "long": 2}
Item = TypeVar("Item")


@dataclass(frozen=True)
class Cohort:
    """One cohort: clients of one seed, most of the time of one setting.

    Attributes:
        row: of ``ROWS``.
        kinds: what the bad clients are, as text; "" if there are none.
        attack: formula that replaces the last ``attackers`` members, or "".
        trusted: whether the first member, an honest one, is given with `--trust`.
    """

    row: str
    seed: int
    setting: Setting
    members: tuple[Client, ...]
    kinds: str = ""
    attack: str = ""
    attackers: int = 0
    trusted: bool = False

    @property
    def bad(self) -> tuple[bool, ...]:
        """For each member, whether it is bad."""
        honest = len(self.members) - self.attackers
        return tuple(one.bad or index >= honest for index, one in enumerate(self.members))


class Draw:
    """Draws from the clients of one seed and setting; each draw has its own randomness."""

    def __init__(self, seed: int, setting: Setting) -> None:
        self.seed, self.setting, self.count = seed, setting, 0
        self.clients = clients_of(setting)

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """``count`` of the items, all if there are not as many, in their order."""
        self.count += 1
        generator = seeded("cohort", self.seed, self.setting.name, self.count)
        picks = torch.randperm(len(items), generator=generator)[:count].sort().values
        return [items[pick] for pick in picks.tolist()]

    def honest(self, count: int, group: str | None = None) -> list[Client]:
        """Honest clients, of one group where one is named."""
        return self.some(
            [one for one in self.clients if not one.bad and group in (None, one.group)], count
        )

    def of_kinds(self, kinds: Mapping[str, int]) -> list[Client]:
        """Bad clients by kind."""
        return [
            client
            for kind, count in kinds.items()
            for client in self.some([one for one in self.clients if one.kind == kind], count)
        ]

    def cohort(self, row: str, honest: Sequence[Client], bad: Mapping[str, int]) -> Cohort:
        """The cohort of these honest clients and bad ones of these kinds."""
        members = (*honest, *self.of_kinds(bad))
        return Cohort(row, self.seed, self.setting, members, "+".join(bad))


def cohorts_of(settings: Mapping[str, Setting], seed: int) -> Iterator[Cohort]:
    """All cohorts of a seed."""
    for setting in settings.values():
        draw = Draw(seed, setting)
        if setting.name == "base":
            yield from _base(draw)
        elif len(setting.groups) > 1:
            yield from _populations(draw)
        else:
            yield from _changed(draw)
    yield from _recipes(settings, seed)


def _base(draw: Draw) -> Iterator[Cohort]:
    """The base setting: sizes, shares and kinds."""
    for size in (5, 6, 8, 10, 12, 16):
        yield draw.cohort("clean", draw.honest(size), {})
    for kind in KINDS:
        yield draw.cohort("several", draw.honest(8), {kind: 2})
        yield draw.cohort("several", draw.honest(6), {kind: 4})
        yield draw.cohort("single", draw.honest(9), {kind: 1})
    for pair in (("samelabel", "backdoor"), ("label", "random"), ("backdoor", "free")):
        yield draw.cohort("several", draw.honest(8), dict.fromkeys(pair, 2))
    for attack in FORMULAS:
        yield Cohort(
            "formulas", draw.seed, draw.setting, tuple(draw.honest(10)), attack, attack, attackers=2
        )
    majorities = [
        draw.cohort("majority-60", draw.honest(4), {"samelabel": 4, "random": 2}),
        draw.cohort("majority-60", draw.honest(4), {"backdoor": 4, "random": 2}),
        draw.cohort("majority-60", draw.honest(4), {"label": 3, "random": 3}),
        draw.cohort(
            "majority-80", draw.honest(3), {"samelabel": 4, "backdoor": 4, "random": 4}
        ),
        draw.cohort("majority-80", draw.honest(3), {"label": 4, "random": 4, "backdoor": 4}),
    ]  # fmt: skip
    yield from majorities
    for one in majorities:
        yield replace(one, row=one.row.replace("majority", "trusted"), trusted=True)
    yield draw.cohort("all-bad", [], {"label": 5})
    yield draw.cohort("all-bad", [], {"random": 4, "free": 3})
    yield draw.cohort("all-bad", [], {"label": 4, "random": 4})


def _changed(draw: Draw) -> Iterator[Cohort]:
    """A setting with one change: ten honest clients, two of each bad kind."""
    for size in (6, 10):
        yield draw.cohort("clean", draw.honest(size), {})
    for kind in KINDS:
        yield draw.cohort("several", draw.honest(8), {kind: 2})
    for pair in (("samelabel", "backdoor"), ("label", "random")):
        yield draw.cohort("several", draw.honest(6), dict.fromkeys(pair, 2))
    for kind in draw.some(KINDS, 2):
        yield draw.cohort("single", draw.honest(9), {kind: 1})


def _populations(draw: Draw) -> Iterator[Cohort]:
    """A setting with two honest sub-populations: all of them, fewer, and with bad clients."""
    (large, many), (small, few) = draw.setting.groups.items()
    whole = [*draw.honest(many, large), *draw.honest(few, small)]
    yield draw.cohort("populations", whole, {})
    for _ in range(3):
        part = [*draw.honest(many - 2, large), *draw.honest(max(2, few - 1), small)]
        yield draw.cohort("populations", part, {})
    for kind in KINDS:
        yield draw.cohort("several", whole, {kind: 2})


def _recipes(settings: Mapping[str, Setting], seed: int) -> Iterator[Cohort]:
    """Honest clients with unequal learning rates and steps."""
    draws = [(Draw(seed, settings[name]), count) for name, count in MIXED_RECIPES.items()]
    for _ in range(4):
        members = tuple(one for draw, count in draws for one in draw.honest(count))
        yield Cohort("recipes", seed, settings["base"], members)
