"""Which of the clients go on: one name per module, comparable, and writable in one format."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.output_format import OutputFormat, choose_output
from clair_cli.adapters.output_paths import NamelessModules
from clair_cli.adapters.same_modules import unify_names
from clair_cli.cohort.comparable import check_comparable
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.settings import Settings
from clair_cli.text import quoted


@dataclass(frozen=True)
class Chosen:
    """The clients that go on, and how their result is written."""

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    layouts: Mapping[str, Layout]
    output: OutputFormat | None
    notes: tuple[str, ...]


def choose_comparable(settings: Settings, cohort: Cohort, previous: Adapter | None) -> Chosen:
    """The clients that can be merged with the majority, and written in its format.

    A client that alone has a module which the format can't name is rejected: it must not
    decide how the others' result is written, nor that it isn't.

    Raises:
        InputRefused, UsageError: nothing comparable; nothing that can be written.
    """
    unnamed: list[Rejection] = []
    while cohort.adapters:
        if previous is not None and (unlike := _unlike(cohort.adapters, previous)):
            unnamed += unlike
            cohort = _without(cohort, unlike)
            continue
        found = check_comparable(cohort, settings.modules, settings.limit)  # type: ignore[arg-type]
        layouts: Mapping[str, Layout] = found.layouts
        adapters = tuple(only_modules(adapter, found.layouts) for adapter in found.adapters)
        if previous is not None:
            layouts = _with_previous(layouts, previous)
        rejected = (*unnamed, *found.rejected)
        if settings.command == "inspect":
            return Chosen(adapters, rejected, layouts, None, found.notes)
        sources = [*adapters] if previous is None else [*adapters, previous]
        try:
            output, notes = choose_output(sources, layouts, settings.tensor_names)
        except NamelessModules as error:
            few = error.minority(sources)
            if not few or any(a is previous for holders in few.values() for a in holders):
                raise
            unnamed += _unwritable(error, few)
            cohort = _without(cohort, unnamed)
            continue
        return Chosen(adapters, rejected, layouts, output, (*found.notes, *notes))
    return Chosen((), tuple(unnamed), {}, None, ())


def _without(cohort: Cohort, gone: Sequence[Rejection]) -> Cohort:
    names = {rejection.name for rejection in gone}
    return replace(cohort, adapters=tuple(a for a in cohort.adapters if a.name not in names))


def only_modules(adapter: Adapter, kept: Container[str]) -> Adapter:
    """The adapter without the modules that are left out: nobody looks at those again."""
    modules = {name: module for name, module in adapter.modules.items() if name in kept}
    return adapter if len(modules) == len(adapter.modules) else replace(adapter, modules=modules)


def _unlike(adapters: Sequence[Adapter], previous: Adapter) -> list[Rejection]:
    """Clients with a module of another shape than the previous adapter's, if few have it so:
    then they are wrong, and not the previous adapter."""
    found: dict[str, Rejection] = {}
    for name, module in sorted(previous.modules.items()):
        having = [a for a in adapters if name in a.modules]
        wrong = [a for a in having if a.modules[name].layout != module.layout]
        if 2 * len(wrong) > len(adapters):
            continue
        for adapter in wrong:
            shape = adapter.modules[name].layout
            reason = RejectedClient(
                f"delta weight has shape {shape}, the previous adapter's has {module.layout}",
                module=name,
                found=f"shape {shape}",
                expected=f"shape {module.layout}",
            )
            found.setdefault(
                adapter.name, rejection(reason, adapter.name, adapter.path, adapter.sha256)
            )
    return list(found.values())


def _unwritable(error: NamelessModules, few: Mapping[str, tuple[Adapter, ...]]) -> list[Rejection]:
    """One rejection for each client with a module that the result's format can't name."""
    found: dict[str, Rejection] = {}
    for module, holders in sorted(few.items()):
        for adapter in holders:
            reason = RejectedClient(
                f"few clients have it, and the result could not hold it: {error.message}",
                module=module,
                found=f"module {quoted(module)}",
                hint=error.hint,
            )
            found.setdefault(
                adapter.name, rejection(reason, adapter.name, adapter.path, adapter.sha256)
            )
    return list(found.values())


def one_name_each(
    adapters: tuple[Adapter, ...], previous: Adapter | None
) -> tuple[tuple[Adapter, ...], Adapter | None, tuple[str, ...]]:
    """The clients and the previous adapter with one name for each module, and remarks."""
    if previous is None:
        named, notes = unify_names(adapters)
        return named, None, notes
    (*named_list, previous), notes = unify_names([*adapters, previous])
    return tuple(named_list), previous, notes


def _with_previous(layouts: Mapping[str, Layout], previous: Adapter) -> dict[str, Layout]:
    """Modules of the clients and of the previous adapter, which must agree in shape."""
    joined = dict(layouts)
    for name, module in previous.modules.items():
        if joined.setdefault(name, module.layout) != module.layout:
            raise UsageError(
                f"--previous: module {quoted(name)} has shape {module.layout}, the clients have "
                f"{joined[name]}"
            )
    return dict(sorted(joined.items()))
