"""Everything read before the first tensor: clients, their weights, the previous adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from clair_cli.errors import InputRefused, RejectedClient, UsageError
from clair_cli.formats.adapter import Adapter
from clair_cli.formats.cohort import Cohort, Rejection, load_cohort, rejection
from clair_cli.formats.comparable import check_comparable
from clair_cli.formats.layout import Layout
from clair_cli.formats.memory import adapters_from_memory
from clair_cli.formats.output_format import OutputFormat, Unnamed, choose_output
from clair_cli.formats.same_modules import unify_names
from clair_cli.formats.weights_file import read_weights
from clair_cli.workflow.settings import Settings


@dataclass(frozen=True)
class Round:
    """One round's comparable clients, in order of content (weights, then config, then name).

    The order makes every sum independent of names and of the folder's order.

    Attributes:
        adapters: comparable clients.
        rejected: everybody else, sorted by name.
        module_shapes: (out, in) of every module, sorted by name.
        weights: one positive number per adapter, or None for equal ones.
        previous: the adapter all started from, or None.
        output: how adapters are written, or None when none will be.
        refusal: why no judgement is possible at all, or None.
        warnings: remarks for the report.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    module_shapes: Mapping[str, tuple[int, int]]
    weights: tuple[float, ...] | None
    previous: Adapter | None
    output: OutputFormat | None
    refusal: InputRefused | None
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.adapters)


def load_round(settings: Settings, dropped: Sequence[Rejection] = ()) -> Round:
    """Read the clients' headers and configs and find those that can be compared.

    Args:
        dropped: clients found unreadable later ("changed while reading"), left out here.

    Raises:
        UsageError: a wrong path or option value.
    """
    try:
        cohort = _load_cohort(settings)
    except InputRefused as error:
        return Round((), (), {}, None, None, None, error, ())
    gone = {r.name for r in dropped}
    cohort = replace(
        cohort,
        adapters=tuple(a for a in cohort.adapters if a.name not in gone),
        rejected=tuple(r for r in cohort.rejected if r.name not in gone) + tuple(dropped),
    )
    weights = _read_weights(settings, cohort)
    previous = _load_previous(settings)
    adapters, previous, renamed = _one_name_each(cohort.adapters, previous)
    cohort = replace(cohort, adapters=adapters)
    warnings = [*cohort.notes, *renamed]
    for adapter in adapters:
        warnings += [f"client {adapter.name!r}: {note}" for note in adapter.notes]
    try:
        chosen = _comparable(settings, cohort, previous)
        refusal = None
    except InputRefused as error:
        chosen, refusal = _Chosen(adapters, (), {}, None, ()), error
    rejected = [*cohort.rejected, *chosen.rejected]
    warnings += chosen.notes
    adapters = tuple(sorted(chosen.adapters, key=_content))
    refusal = refusal or _too_few(settings, len(adapters), len(rejected))
    return Round(
        adapters,
        tuple(sorted(rejected, key=lambda r: r.name)),
        {name: layout.matrix for name, layout in chosen.layouts.items()},
        None if weights is None else tuple(weights[a.name] for a in adapters),
        previous,
        chosen.output,
        refusal,
        tuple(warnings),
    )


@dataclass(frozen=True)
class _Chosen:
    """The clients that go on, and how their result is written."""

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    layouts: Mapping[str, Layout]
    output: OutputFormat | None
    notes: tuple[str, ...]


def _comparable(settings: Settings, cohort: Cohort, previous: Adapter | None) -> _Chosen:
    """The clients that can be merged with the majority, and written in its format.

    A client that alone has a module which the format can't name is rejected: it must not
    decide how the others' result is written, nor that it isn't.

    Raises:
        InputRefused, UsageError: nothing comparable; nothing that can be written.
    """
    unnamed: list[Rejection] = []
    while cohort.adapters:
        found = check_comparable(cohort, settings.modules)  # type: ignore[arg-type]
        layouts: Mapping[str, Layout] = found.layouts
        if previous is not None:
            layouts = _with_previous(layouts, previous)
        rejected = (*unnamed, *found.rejected)
        if settings.command == "inspect":
            return _Chosen(found.adapters, rejected, layouts, None, found.notes)
        sources = [*found.adapters] if previous is None else [*found.adapters, previous]
        try:
            output, notes = choose_output(sources, layouts, settings.output_format)
        except Unnamed as error:
            few = error.minority(sources)
            if not few or any(a is previous for holders in few.values() for a in holders):
                raise
            unnamed += _unwritable(error, few)
            gone = {rejection.name for rejection in unnamed}
            cohort = replace(
                cohort, adapters=tuple(a for a in cohort.adapters if a.name not in gone)
            )
            continue
        return _Chosen(found.adapters, rejected, layouts, output, (*found.notes, *notes))
    return _Chosen((), tuple(unnamed), {}, None, ())


def _unwritable(error: Unnamed, few: Mapping[str, tuple[Adapter, ...]]) -> list[Rejection]:
    """One rejection for each client with a module that the result's format can't name."""
    found: dict[str, Rejection] = {}
    for module, holders in sorted(few.items()):
        for adapter in holders:
            reason = RejectedClient(
                f"few clients have it, and the result could not hold it: {error.message}",
                module=module,
                found=f"module {module!r}",
                hint=error.hint,
            )
            found.setdefault(
                adapter.name, rejection(reason, adapter.name, adapter.path, adapter.sha256)
            )
    return list(found.values())


def _one_name_each(
    adapters: tuple[Adapter, ...], previous: Adapter | None
) -> tuple[tuple[Adapter, ...], Adapter | None, tuple[str, ...]]:
    """The clients and the previous adapter with one name for each module, and remarks."""
    if previous is None:
        named, notes = unify_names(adapters)
        return named, None, notes
    (*named_list, previous), notes = unify_names([*adapters, previous])
    return tuple(named_list), previous, notes


def _content(adapter: Adapter) -> tuple[str, str, str]:
    """Equal weights may have unequal scales, so the config counts before the name does."""
    config = json.dumps(adapter.config.raw, sort_keys=True, default=str)
    return adapter.sha256, config, adapter.name


def _load_cohort(settings: Settings) -> Cohort:
    if not settings.in_memory:
        return load_cohort(
            settings.clients, assume_alpha=settings.assume_alpha, exclude=settings.exclude
        )
    unknown = [name for name in settings.exclude if name not in settings.clients]
    if unknown:
        raise UsageError(f"no client is called {unknown[0]!r}, so it can't be excluded")
    return adapters_from_memory(
        {name: pair for name, pair in settings.clients.items() if name not in settings.exclude}
    )


def _read_weights(settings: Settings, cohort: Cohort) -> dict[str, float] | None:
    """Weights by name; names are those of all clients found, rejected or not."""
    if settings.weights is None:
        return None
    found = [a.name for a in cohort.adapters] + [r.name for r in cohort.rejected]
    names = sorted(set(found) - set(settings.exclude))
    if not isinstance(settings.weights, Mapping):
        return read_weights(settings.weights, names, optional=settings.exclude)
    given: dict[str, Any] = dict(settings.weights)
    if missing := sorted(set(names) - set(given)):
        raise UsageError(f"weights: no weight for client {missing[0]!r}")
    if unknown := sorted(set(given) - set(names) - set(settings.exclude)):
        raise UsageError(f"weights: unknown client {unknown[0]!r}")
    for name, value in given.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not (number and value > 0 and math.isfinite(value)):
            raise UsageError(f"weights: {value} for {name!r} is not a positive number")
    return given


def _load_previous(settings: Settings) -> Adapter | None:
    """The previous round's adapter: a PEFT folder, a file, or (state dict, config)."""
    given = settings.previous
    if given is None:
        return None
    if isinstance(given, Path):
        cohort = _cohort_of_one(given)
    else:
        cohort = adapters_from_memory({"previous": given})
    if cohort.rejected:
        raise UsageError(f"--previous: {cohort.rejected[0].message}", hint=cohort.rejected[0].hint)
    return cohort.adapters[0]


def _cohort_of_one(path: Path) -> Cohort:
    from clair_cli.formats.cohort import load_one

    return load_one(path)


def _with_previous(layouts: Mapping[str, Layout], previous: Adapter) -> dict[str, Layout]:
    """Modules of the clients and of the previous adapter, which must agree in shape."""
    joined = dict(layouts)
    for name, module in previous.modules.items():
        if joined.setdefault(name, module.layout) != module.layout:
            raise UsageError(
                f"--previous: module {name!r} has shape {module.layout}, the clients have "
                f"{joined[name]}"
            )
    return dict(sorted(joined.items()))


def _too_few(settings: Settings, usable: int, rejected: int) -> InputRefused | None:
    if settings.strict and rejected:
        return InputRefused(
            f"{rejected} clients rejected, and --strict allows none",
            hint="mend or remove them, or run without --strict",
        )
    small = usable < 3 and not rejected and settings.min_clients <= 3
    if usable >= settings.min_clients or (small and usable):
        return None
    return InputRefused(
        f"{usable} usable client{'' if usable == 1 else 's'} ({rejected} rejected), "
        f"{settings.min_clients} needed",
        hint="mend the rejected clients, or lower --min-clients"
        if rejected
        else "collect more clients, or lower --min-clients",
    )


def rejection_of(error: RejectedClient, adapter: Adapter) -> Rejection:
    """The listing of a client whose tensors turned out unreadable."""
    if "changed while reading" not in error.message:  # vanished, say: it was there before
        error.message = f"changed while reading: {error.message}"
    return rejection(error, adapter.name, adapter.path, adapter.sha256)
