"""The clients that are judged: one name per module, comparable, and writable in one format."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.output_format import OutputFormat, choose_output
from clair_cli.adapters.output_paths import NamelessModules
from clair_cli.adapters.same_modules import unify_names
from clair_cli.adapters.variants import changes_base
from clair_cli.cohort.comparable import check_comparable
from clair_cli.cohort.experts import with_same_experts
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.cohort.one_naming import in_one_naming
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.remark import Remark
from clair_cli.settings import Settings
from clair_cli.text import quoted


@dataclass(frozen=True)
class Choice:
    """The clients that are judged, and how their result is written.

    Attributes:
        adapters: in the cohort's order; without modules that are not compared.
        rejected: the other clients, without those rejected before.
        layouts: of every module that may be written, sorted by name.
        output: the format of the result; None where none is written.
        notes: remarks for the report.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    layouts: Mapping[str, Layout]
    output: OutputFormat | None
    notes: tuple[Remark, ...]


def choose_comparable(settings: Settings, cohort: Cohort, previous: Adapter | None) -> Choice:
    """Choose the clients that can be merged with the majority, and written in its format.

    Few clients with a module that has no name in the format are rejected: they must not decide the
    format of the others' result, nor prevent it.

    Args:
        cohort: with one name per module; see `one_name_each`.
        previous: the adapter that all clients started from (of `--previous` or `--initial`), or
            None.

    Raises:
        InputRefused: nothing comparable.
        UsageError: no format for the result, or the previous adapter has other shapes, or the
            initial one lacks modules.
    """
    unnamed: list[Rejection] = []
    while cohort.adapters:
        started = started_from(settings.initial is not None)
        if previous is not None and (unlike := _unlike(cohort.adapters, previous, started)):
            unnamed += unlike
            cohort = _without(cohort, unlike)
            continue
        found = check_comparable(
            cohort,
            settings.modules,  # type: ignore[arg-type]
            settings.limit,
            same_base=settings.same_base,
        )
        layouts: Mapping[str, Layout] = found.layouts
        given = previous if settings.initial is not None else None
        if given is not None and (unstarted := _not_in_start(found.adapters, layouts, given)):
            unnamed += unstarted
            cohort = _without(cohort, unstarted)
            continue
        adapters = tuple(only_modules(adapter, found.layouts) for adapter in found.adapters)
        if previous is not None:
            joined = _with_previous(layouts, previous, started)
            layouts = layouts if settings.initial is not None else joined
        rejected = (*unnamed, *found.rejected)
        if settings.command == "inspect":
            return Choice(adapters, rejected, layouts, None, found.notes)
        sources = [*adapters]
        if previous is not None and settings.initial is None:
            sources.append(previous)
        try:
            output, notes = choose_output(sources, layouts, settings.tensor_names)
        except NamelessModules as error:
            few = error.minority(sources)
            if not few or any(a is previous for holders in few.values() for a in holders):
                raise
            unnamed += _unwritable(error, few)
            cohort = _without(cohort, unnamed)
            continue
        return Choice(adapters, rejected, layouts, output, (*found.notes, *notes))
    return Choice((), tuple(unnamed), {}, None, ())


def _without(cohort: Cohort, gone: Sequence[Rejection]) -> Cohort:
    names = {rejection.name for rejection in gone}
    return replace(cohort, adapters=tuple(a for a in cohort.adapters if a.name not in names))


def only_modules(adapter: Adapter, kept: Container[str]) -> Adapter:
    """The adapter with only those of its modules that are in `kept`."""
    modules = {name: module for name, module in adapter.modules.items() if name in kept}
    return adapter if len(modules) == len(adapter.modules) else replace(adapter, modules=modules)


def started_from(initial: bool) -> str:
    """The option that gave the adapter which all clients started from."""
    return "--initial" if initial else "--previous"


def _unlike(adapters: Sequence[Adapter], previous: Adapter, option: str) -> list[Rejection]:
    """Rejections of clients with a module of another shape than the previous adapter's. Where more
    than half of the clients have another shape, the previous adapter is wrong, and none of them."""
    found: dict[str, Rejection] = {}
    for name, module in sorted(previous.modules.items()):
        having = [a for a in adapters if name in a.modules]
        wrong = [a for a in having if a.modules[name].layout != module.layout]
        if 2 * len(wrong) > len(adapters):
            continue
        for adapter in wrong:
            shape = adapter.modules[name].layout
            reason = RejectedClient(
                f"delta weight has shape {shape}, the {option[2:]} adapter's has {module.layout}",
                module=name,
                found=f"shape {shape}",
                expected=f"shape {module.layout}",
            )
            found.setdefault(
                adapter.name, rejection(reason, adapter.name, adapter.path, adapter.sha256)
            )
    return list(found.values())


def _not_in_start(
    adapters: Sequence[Adapter], modules: Iterable[str], initial: Adapter
) -> list[Rejection]:
    """Rejections of clients whose init changed the base in a module that the initial adapter lacks:
    what they added to it there is not known.

    Raises:
        UsageError: more than half of the clients have it: it is the initial adapter that is wrong.
    """
    changed = [a for a in adapters if (init := a.config.guarded_init) and changes_base(init)]
    found: dict[str, Rejection] = {}
    for name in sorted(set(modules) - initial.modules.keys()):
        having = [a for a in changed if name in a.modules]
        if 2 * len(having) > len(adapters):
            raise UsageError(
                f"--initial: it lacks module {quoted(name)}, which {len(having):,} of "
                f"{len(adapters):,} clients have: their init changed the base there too",
                hint="give the whole adapter that every client started from",
            )
        for adapter in having:
            reason = RejectedClient(
                "the initial adapter lacks it, so that what was added to it is not known",
                module=name,
                found=f"module {quoted(name)}",
                expected="the initial adapter's modules",
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
    cohort: Cohort, given: Mapping[str, Adapter | None]
) -> tuple[Cohort, tuple[Adapter | None, ...], tuple[Remark, ...]]:
    """The clients and the adapters given beside them, with one name for each module; remarks. Who
    has names, or experts, that can't be the others' is rejected.

    Args:
        given: by option of the command line.

    Raises:
        UsageError: see `in_one_naming` and `with_same_experts`.
    """
    cohort, given, notes = in_one_naming(cohort, given)
    n = len(cohort.adapters)
    named, more = unify_names([*cohort.adapters, *(a for a in given.values() if a is not None)])
    rest = iter(named[n:])
    given = {option: adapter and next(rest) for option, adapter in given.items()}
    cohort = with_same_experts(replace(cohort, adapters=named[:n]), given)
    return cohort, tuple(given.values()), (*notes, *more)


def _with_previous(
    layouts: Mapping[str, Layout], previous: Adapter, option: str
) -> dict[str, Layout]:
    """Layouts of the modules of the clients and of the previous adapter; shapes must agree."""
    joined = dict(layouts)
    for name, module in previous.modules.items():
        if joined.setdefault(name, module.layout) != module.layout:
            raise UsageError(
                f"{option}: module {quoted(name)} has shape {module.layout}, the clients have "
                f"{joined[name]}"
            )
    return dict(sorted(joined.items()))
