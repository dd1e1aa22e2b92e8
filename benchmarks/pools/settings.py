"""How the clients of a pool are trained: one base setting, then one change at a time.

A pool is a setting of a domain and a seed. Its clients are honest, or bad in one of ``KINDS``:

``label``      labels go through a permutation of the classes, each client's own
``samelabel``  the same with one permutation for all
``random``     labels are drawn at random, afresh in every step
``backdoor``   half of the data carry a trigger, and all labels of such data are one class
``free``       a free rider: no training, lora_B filled with noise
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

KINDS = ("label", "samelabel", "random", "backdoor", "free")
TWO_OF_EACH = dict.fromkeys(KINDS, 2)


@dataclass(frozen=True)
class Setting:
    """How the clients of one pool are trained.

    Attributes:
        name: the folder of the pool.
        groups: honest clients by where their data come from; "all" is everywhere.
        bad: bad clients by kind. Their data come from the first group.
        iid: every client's data are drawn from all families alike, instead of by proportions
            from a Dirichlet distribution.
        same_start: all clients start from the same lora_A.
        steps, rate: of training; the rate is Adam's learning rate.
        rank: r of LoRA; lora_alpha is twice as much.
        all_linear: adapt all linear layers, instead of queries and values.
        second: clients start from the mean of the honest clients of the base setting.
    """

    name: str
    groups: Mapping[str, int] = field(default_factory=lambda: {"all": 10})
    bad: Mapping[str, int] = field(default_factory=lambda: TWO_OF_EACH)
    iid: bool = False
    same_start: bool = False
    steps: int = 25
    rate: float = 1e-3
    rank: int = 8
    all_linear: bool = False
    second: bool = False


@dataclass(frozen=True)
class Client:
    """One client of a pool, trained or yet to be.

    Attributes:
        group: where its data come from, of the setting's groups.
        kind: "honest" or one of ``KINDS``.
        index: number among those of its kind, or of its group if it is honest.
    """

    setting: Setting
    group: str
    kind: str
    index: int

    @property
    def bad(self) -> bool:
        """Whether it is not honest."""
        return self.kind != "honest"

    @property
    def name(self) -> str:
        """Its folder in the pool: kind, and the group where it has a meaning, and number."""
        group = "" if self.bad or self.group == "all" else f"-{self.group}"
        return f"{self.kind}{group}-{self.index:02d}"


def clients_of(setting: Setting) -> list[Client]:
    """All clients of a pool, honest ones first."""
    first = next(iter(setting.groups))
    honest = [
        Client(setting, group, "honest", index)
        for group, count in setting.groups.items()
        for index in range(count)
    ]
    bad = [
        Client(setting, first, kind, index)
        for kind, count in setting.bad.items()
        for index in range(count)
    ]
    return honest + bad


def one_change_at_a_time(base: Setting, **populations: Mapping[str, int]) -> dict[str, Setting]:
    """The base setting, one change at a time, and a second round: settings by name.

    Args:
        base: has the larger pool; the others have 10 honest clients and 2 of each bad kind.
        populations: honest sub-populations, name of the setting to honest clients by group.
    """
    changed = replace(base, groups={"all": 10}, bad=TWO_OF_EACH)
    settings = [
        base,
        replace(changed, name="iid", iid=True),
        replace(changed, name="same-start", same_start=True),
        replace(changed, name="fast", rate=3 * base.rate),
        replace(changed, name="slow", rate=base.rate / 3),
        replace(changed, name="short", steps=8),
        replace(changed, name="long", steps=60),
        *(replace(changed, name=name, groups=groups) for name, groups in populations.items()),
        replace(changed, name="r4", rank=4),
        replace(changed, name="r16", rank=16),
        replace(changed, name="all-linear", all_linear=True),
        replace(changed, name="second", second=True),
    ]
    return {setting.name: setting for setting in settings}
