"""The order in which pictures show clients and modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

from clair_cli.report.model import VERDICTS, ClientReport, Report

_ROLES = ("collaborative", "minority", "other", "loner")
_DIGITS = re.compile(r"([0-9]{1,18})")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts numbers in names by size.

    >>> sorted(["layers.10.q", "layers.9.q", "head"], key=natural)
    ['head', 'layers.9.q', 'layers.10.q']
    """
    parts = _DIGITS.split(name)
    return tuple((1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(parts))


def groups_of(report: Report) -> dict[str, int]:
    """Client -> the number of the group or minority it is in; the cohort's own group is 0."""
    order = sorted(report.cohort.groups, key=lambda g: _ROLES.index(g.role))
    found: dict[str, int] = {}
    for number, group in enumerate(order):
        for name in group.members:
            found.setdefault(name, number)
    return found


def by_group(report: Report) -> list[ClientReport]:
    """The clients that were compared: the cohort's group first, then minorities and other groups,
    then who is in none; inside of each those with most of what is shared first."""
    groups, compared = groups_of(report), set(report.cohort.names)

    def key(client: ClientReport) -> tuple[int, float, str]:
        loading = client.scores.loading
        return groups.get(client.name, len(groups)), -(loading or 0.0), client.name

    clients = [c for c in report.clients if c.name in compared and c.verdict != "rejected"]
    return sorted(clients, key=key)


def by_verdict(clients: Iterable[ClientReport]) -> list[ClientReport]:
    """Who was left out first; of one verdict the lowest loading first, then by name."""

    def key(client: ClientReport) -> tuple[int, float, str]:
        loading = client.scores.loading
        return VERDICTS.index(client.verdict), 2.0 if loading is None else loading, client.name

    return sorted(clients, key=key)


def short_names(names: Iterable[str]) -> list[str]:
    """Names of modules without what all of them begin with.

    >>> short_names(["model.layers.0.q_proj", "model.layers.1.q_proj"])
    ['0.q_proj', '1.q_proj']
    """
    parts = [name.split(".") for name in names]
    shared = 0
    least = min((len(each) for each in parts), default=0)
    while shared < least - 1 and len({each[shared] for each in parts}) == 1:
        shared += 1
    return [".".join(each[shared:]) for each in parts]
