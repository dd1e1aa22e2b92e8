"""The majority's modules and their shapes: clients that are at odds with them are rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.text import at_most, first_few, quoted

Holders = Mapping[str, Mapping[Layout, Sequence[str]]]
# Modules that a client may have beyond the majority's: so many times as many, and some more. Every
# one costs memory and time, and room in the report.
BEYOND_FACTOR, BEYOND_MORE = 4, 16


def reject_by_module(
    adapters: list[Adapter], errors: dict[str, RejectedClient], notes: list[str]
) -> tuple[list[Adapter], set[str]]:
    """Drop clients whose shapes are a minority's, that share no module with the majority, or that
    have far more modules than it.

    Returns:
        `(adapters, left_out)`: the clients kept, and modules on whose shape the few clients
        that have them do not agree.

    Raises:
        InputRefused: no majority for the shape of a module that most clients have, or no
            module that more than half of the clients have.
    """
    adapters = _in_proportion(adapters, errors)
    while True:
        holders = holders_of(adapters)
        found = _minorities(adapters, holders)
        if not found:
            break
        errors.update(found)
        adapters = [adapter for adapter in adapters if adapter.name not in found]
    left_out = _ties(holders, len(adapters), notes)
    return _sharing(adapters, errors), left_out


def holders_of(adapters: Sequence[Adapter]) -> dict[str, dict[Layout, list[str]]]:
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
    left_out, found = set(), []
    for module in sorted(holders):
        by_shape = holders[module]
        if len(by_shape) == 1:
            continue
        total = sum(len(names) for names in by_shape.values())
        ordered = sorted(by_shape.items(), key=lambda item: (-len(item[1]), item[0].weight))
        listed = "; ".join(f"{shape} ({first_few(names)})" for shape, names in ordered[:5])
        if 2 * total > n_clients:
            raise InputRefused(f"no majority for the shape of module {quoted(module)}: {listed}")
        found.append(f"module {quoted(module)} left out, its shapes have no majority: {listed}")
        left_out.add(module)
    notes += at_most(found, "modules left out, whose shapes have no majority")
    return left_out


def majority_modules(adapters: Sequence[Adapter]) -> set[str]:
    """Modules that more than half of the clients have."""
    counts = Counter(module for adapter in adapters for module in adapter.modules)
    return {module for module, n in counts.items() if 2 * n > len(adapters)}


def _in_proportion(adapters: list[Adapter], errors: dict[str, RejectedClient]) -> list[Adapter]:
    """The clients without far more modules than the majority's."""
    common = majority_modules(adapters)
    most = BEYOND_FACTOR * len(common) + BEYOND_MORE
    kept = []
    for adapter in adapters:
        beyond = len(adapter.modules) - len(common.intersection(adapter.modules))
        if not common or beyond <= most:
            kept.append(adapter)
            continue
        errors[adapter.name] = RejectedClient(
            f"has {beyond:,} modules beyond the {len(common):,} that most clients have, at most "
            f"{most:,} may be ({first_few(set(adapter.modules) - common)})",
            found=f"{beyond:,} modules beyond the majority's",
            expected=f"at most {BEYOND_FACTOR} x {len(common):,} + {BEYOND_MORE}",
        )
    return kept


def _sharing(adapters: list[Adapter], errors: dict[str, RejectedClient]) -> list[Adapter]:
    common = majority_modules(adapters)
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
