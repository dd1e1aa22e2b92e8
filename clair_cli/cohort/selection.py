"""The modules of a cohort that are compared and merged, by the option `--modules`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.cohort.majority import holders_of, majority_modules
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.remark import Remark, at_most, note, warning
from clair_cli.text import first_few

# So many clients make a module common, in a cohort of any size: each of three can be compared with
# two others.
ENOUGH_HOLDERS = 3


def fewest_holders(n_clients: int) -> int:
    """How many of `n_clients` clients must have a module for it to be common: three, or half.

    >>> [fewest_holders(n) for n in (1, 2, 3, 4, 5, 100)]
    [1, 1, 2, 2, 3, 3]
    """
    return min(ENOUGH_HOLDERS, (n_clients + 1) // 2)


def select_modules(
    adapters: list[Adapter],
    modules: str,
    left_out: set[str],
    errors: dict[str, RejectedClient],
    notes: list[Remark],
) -> tuple[list[Adapter], dict[str, Layout]]:
    """Choose the modules that are compared; `modules_to_merge` chooses from them later.

    Args:
        modules: "common", "union", "intersection" or "same".
        left_out: modules that are not compared in any case.
        errors: gets one error for each client rejected here, by name.
        notes: get remarks on modules that some clients lack.

    Returns:
        The other clients, and the layouts of the modules, sorted by name.

    Raises:
        InputRefused: no module is left, or under "same" no client.
    """
    if modules in ("same", "intersection"):
        adapters = _complete(adapters, errors, all_of_them=modules == "same")
    holders = holders_of(adapters)
    n_holders = {m: sum(map(len, by_shape.values())) for m, by_shape in holders.items()}
    least = fewest_holders(len(adapters)) if modules in ("common", "intersection") else 1
    candidates = sorted(set(holders) - left_out)
    shapes = {m: next(iter(holders[m])) for m in candidates if n_holders[m] >= least}
    if rare := [m for m in candidates if m not in shapes]:
        names = {name for m in rare for having in holders[m].values() for name in having}
        text = (
            f"{_counted(rare, 'module')} left out: fewer than {least} of {len(adapters):,} clients "
            f"have {'it' if len(rare) == 1 else 'each'} ({_counted(sorted(names), 'client')})"
        )
        notes.append(warning("rare_modules", text))
    _note_absent(adapters, [m for m in shapes if n_holders[m] < len(adapters)], modules, notes)
    if not shapes:
        raise InputRefused("no module is left that the clients have in common")
    return adapters, shapes


def modules_to_merge(holders: Mapping[str, int], n_merged: int, modules: str) -> tuple[str, ...]:
    """The modules that the merged clients are merged in, in the order of `holders`.

    Args:
        holders: how many of the merged clients have each module that was compared.
        n_merged: how many clients are merged.
        modules: as in `select_modules`.
    """
    least = {"common": fewest_holders(n_merged), "intersection": n_merged}.get(modules, 1)
    return tuple(m for m, n in holders.items() if n >= max(1, least))


def _note_absent(
    adapters: Sequence[Adapter], some_lack: Sequence[str], modules: str, notes: list[Remark]
) -> None:
    """Note which clients lack which modules."""
    lacking: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module in some_lack:
        lacking[tuple(a.name for a in adapters if module not in a.modules)].append(module)
    effect = "left out where such a client is merged"
    if modules != "intersection":
        effect = "a zero update there"
    absences = [
        note(
            "absent_modules",
            f"{_counted(names, 'module')} absent from {_counted(absent, 'client')}: {effect}",
        )
        for absent, names in lacking.items()
    ]
    notes += at_most(absences, "notes on modules absent from some clients")


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'} ({first_few(names)})"


def _complete(
    adapters: list[Adapter], errors: dict[str, RejectedClient], *, all_of_them: bool
) -> list[Adapter]:
    """The clients that have the majority's modules.

    Args:
        all_of_them: reject a client for one that it lacks, and not only for more than half.
    """
    common = majority_modules(adapters)
    kept = []
    for adapter in adapters:
        missing = common - set(adapter.modules)
        if not missing or not (all_of_them or 2 * len(missing) > len(common)):
            kept.append(adapter)
            continue
        beyond = "" if all_of_them else f", more than half of those {len(common):,}"
        errors[adapter.name] = RejectedClient(
            f"lacks {_counted(sorted(missing), 'module')} that most clients have{beyond}",
            found=f"{len(common) - len(missing):,} modules of the majority",
            expected=f"{'all' if all_of_them else 'at least half of the'} {len(common):,}",
        )
    if not kept:
        raise InputRefused("no client has every module of the majority")
    return kept
