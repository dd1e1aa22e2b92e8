"""Modules of a cohort: the majority's shapes, and which modules are merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.formats.adapter import Adapter
from clair_cli.formats.key_map import first_few
from clair_cli.formats.layout import Layout
from clair_cli.formats.strict_json import quoted

Holders = Mapping[str, Mapping[Layout, Sequence[str]]]
MAX_NOTED_MODULES = 20


def reject_by_module(
    adapters: list[Adapter], errors: dict[str, RejectedClient], notes: list[str]
) -> tuple[list[Adapter], set[str]]:
    """Drop clients whose shapes are a minority's, or that share no module with the majority.

    Returns:
        `(adapters, left_out)`: the clients kept, and modules on whose shape the few clients
        that have them do not agree.

    Raises:
        InputRefused: no majority for the shape of a module that most clients have, or no
            module that more than half of the clients have.
    """
    while True:
        holders = _holders(adapters)
        found = _minorities(adapters, holders)
        if not found:
            break
        errors.update(found)
        adapters = [adapter for adapter in adapters if adapter.name not in found]
    left_out = _ties(holders, len(adapters), notes)
    return _sharing(adapters, holders, errors), left_out


def select_modules(
    adapters: list[Adapter],
    modules: str,
    left_out: set[str],
    errors: dict[str, RejectedClient],
    notes: list[str],
) -> tuple[list[Adapter], dict[str, Layout]]:
    """Apply "union", "intersection" or "strict"; layouts come sorted by module.

    Raises:
        InputRefused: no module is left, or under "strict" no client.
    """
    holders = _holders(adapters)
    if modules == "strict":
        adapters = _complete(adapters, holders, errors)
        holders = _holders(adapters)
    shapes: dict[str, Layout] = {}
    lacking: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module in sorted(set(holders) - left_out):
        having = {name for names in holders[module].values() for name in names}
        if len(having) < len(adapters):
            absent = tuple(a.name for a in adapters if a.name not in having)
            lacking[absent].append(module)
            if modules == "intersection":
                continue
        shapes[module] = next(iter(holders[module]))
    effect = "left out" if modules == "intersection" else "a zero update there"
    for absent, names in list(lacking.items())[:MAX_NOTED_MODULES]:
        notes.append(
            f"{_counted(names, 'module')} absent from {_counted(absent, 'client')}: {effect}"
        )
    if len(lacking) > MAX_NOTED_MODULES:
        more = sum(len(names) for names in list(lacking.values())[MAX_NOTED_MODULES:])
        notes.append(f"{more:,} more modules absent from some clients: {effect}")
    if not shapes:
        raise InputRefused("no module is left that the clients have in common")
    return adapters, shapes


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'} ({first_few(names)})"


def _holders(adapters: Sequence[Adapter]) -> dict[str, dict[Layout, list[str]]]:
    """Module to layout to names of the clients that have it so."""
    holders: dict[str, dict[Layout, list[str]]] = {}
    for adapter in adapters:
        for module in adapter.modules.values():
            by_shape = holders.setdefault(module.name, {})
            by_shape.setdefault(module.layout, []).append(adapter.name)
    return holders


def _minorities(adapters: Sequence[Adapter], holders: Holders) -> dict[str, RejectedClient]:
    """One error for each client with a module of other shape than the strict majority has."""
    found: dict[str, RejectedClient] = {}
    for module in sorted(holders):
        by_shape = holders[module]
        total = sum(len(names) for names in by_shape.values())
        top = max(by_shape, key=lambda shape: len(by_shape[shape]))
        count = len(by_shape[top])
        if len(by_shape) == 1 or 2 * count <= total:
            continue
        for shape, names in by_shape.items():
            if shape == top:
                continue
            for name in names:
                found.setdefault(
                    name,
                    RejectedClient(
                        f"delta weight has shape {shape}, {count} of {total} clients have {top}",
                        module=module,
                        found=f"shape {shape}",
                        expected=f"shape {top}",
                    ),
                )
    return found


def _ties(holders: Holders, n_clients: int, notes: list[str]) -> set[str]:
    """Modules without a majority shape: left out if few clients have them, else the end."""
    left_out = set()
    for module in sorted(holders):
        by_shape = holders[module]
        if len(by_shape) == 1:
            continue
        total = sum(len(names) for names in by_shape.values())
        ordered = sorted(by_shape.items(), key=lambda item: (-len(item[1]), item[0].weight))
        listed = "; ".join(f"{shape} ({first_few(names)})" for shape, names in ordered[:5])
        if 2 * total > n_clients:
            raise InputRefused(f"no majority for the shape of module {quoted(module)}: {listed}")
        notes.append(f"module {quoted(module)} left out, its shapes have no majority: {listed}")
        left_out.add(module)
    return left_out


def _majority_modules(adapters: Sequence[Adapter], holders: Holders) -> set[str]:
    """Modules that more than half of the clients have."""
    return {
        module
        for module, by_shape in holders.items()
        if 2 * sum(len(names) for names in by_shape.values()) > len(adapters)
    }


def _sharing(
    adapters: list[Adapter], holders: Holders, errors: dict[str, RejectedClient]
) -> list[Adapter]:
    common = _majority_modules(adapters, holders)
    if not common:
        raise InputRefused(
            f"no module is shared by more than half of the {len(adapters):,} clients"
        )
    kept = []
    for adapter in adapters:
        if common.isdisjoint(adapter.modules):
            errors[adapter.name] = RejectedClient(
                f"shares no module with the majority; it has {first_few(adapter.modules)}, most "
                f"clients have {first_few(common)}",
                found=first_few(adapter.modules),
                expected=first_few(common),
            )
        else:
            kept.append(adapter)
    return kept


def _complete(
    adapters: list[Adapter], holders: Holders, errors: dict[str, RejectedClient]
) -> list[Adapter]:
    common = _majority_modules(adapters, holders)
    kept = []
    for adapter in adapters:
        missing = common - set(adapter.modules)
        if missing:
            errors[adapter.name] = RejectedClient(
                f"lacks {_counted(sorted(missing), 'module')} that most clients have",
                found=f"{len(adapter.modules):,} modules",
                expected=f"all {len(common):,} modules of the majority",
            )
        else:
            kept.append(adapter)
    if not kept:
        raise InputRefused("no client has every module of the majority")
    return kept
