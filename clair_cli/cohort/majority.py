"""The majority's modules and shapes: clients that differ from them are rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.remark import Remark, at_most, warning
from clair_cli.text import first_few, quoted, some_of

Holders = Mapping[str, Mapping[Layout, Sequence[str]]]
ONE_GROUP = "merge one of these groups, and leave the others out with --exclude"
# A client may have FACTOR x the majority's modules + MORE beyond them. Each of them costs memory,
# time, and room in the report.
BEYOND_FACTOR, BEYOND_MORE = 4, 16


def reject_by_module(
    adapters: list[Adapter], errors: dict[str, RejectedClient], notes: list[Remark]
) -> tuple[list[Adapter], set[str]]:
    """Reject clients whose shapes are a minority's, that share no module with the majority, or that
    have far more modules than it.

    Args:
        errors: gets one error for each rejected client, by name.
        notes: get a remark on each module left out.

    Returns:
        `(adapters, left_out)`: the other clients, and modules of few clients that have no majority
        for a shape.

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
    """An error for each client with a module in another shape than a strict majority's, by name."""
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


def _ties(holders: Holders, n_clients: int, notes: list[Remark]) -> set[str]:
    """Modules without a majority shape; InputRefused if more than half of the clients have one."""
    left_out, found = set(), []
    for module in sorted(holders):
        by_shape = holders[module]
        if len(by_shape) == 1:
            continue
        total = sum(len(names) for names in by_shape.values())
        ordered = sorted(by_shape.items(), key=lambda item: (-len(item[1]), item[0].weight))
        listed = "; ".join(f"{shape} ({first_few(names)})" for shape, names in ordered[:5])
        if 2 * total > n_clients:
            raise InputRefused(
                f"no majority for the shape of module {quoted(module)}: {listed}", hint=ONE_GROUP
            )
        text = f"module {quoted(module)} left out, its shapes have no majority: {listed}"
        found.append(warning("no_shape", text))
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
        some = [f"{quoted(a.name)} has {first_few(a.modules, 1)}" for a in adapters]
        raise InputRefused(
            f"no module is shared by more than half of the {len(adapters):,} clients: "
            f"{some_of(some, 2)}",
            hint="give clients of one base model, whose tensor names are of one kind",
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
