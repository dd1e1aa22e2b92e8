"""Clients of one model under several namings: in that of most of them, or rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.namings import (
    FAMILIES,
    Family,
    Naming,
    marked,
    naming_without_marks,
    translated,
    with_main_part,
)
from clair_cli.cohort.model import Cohort, rejection
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.remark import Remark, note
from clair_cli.text import first_few, quoted


def in_one_naming(
    cohort: Cohort, given: Mapping[str, Adapter | None]
) -> tuple[Cohort, dict[str, Adapter | None], tuple[Remark, ...]]:
    """The clients, and the adapters given beside them, in the naming that most clients have.

    Two namings of one model would be merged as modules of their own, at a part of their size. Where
    the naming of few clients has no translation, they are rejected.

    Args:
        given: by option of the command line.

    Returns:
        `(cohort, given, notes)`.

    Raises:
        UsageError: an adapter beside the clients can't be translated.
    """
    cohort = replace(cohort, adapters=tuple(map(_with_part, cohort.adapters)))
    given = {option: adapter and _with_part(adapter) for option, adapter in given.items()}
    notes: list[Remark] = []
    for family in FAMILIES:
        adapters = [*cohort.adapters, *filter(None, given.values())]
        marks = marked(family, {name for adapter in adapters for name in adapter.modules})
        target = _most_common(family, cohort, marks)
        if target is None:
            continue
        change = partial(_in_naming, family=family, marks=marks, target=target)
        kept, refused = [], []
        for adapter in cohort.adapters:
            try:
                kept.append(change(adapter))
            except RejectedClient as error:
                refused.append(rejection(error, adapter.name, adapter.path, adapter.sha256))
        notes += _changes(cohort.adapters, kept, target)
        cohort = replace(cohort, adapters=tuple(kept), rejected=(*cohort.rejected, *refused))
        given = {option: adapter and _given(option, adapter, change)
                 for option, adapter in given.items()}  # fmt: skip
    return cohort, dict(given), tuple(notes)


def _namings(adapter: Adapter, marks: Mapping[str, Naming]) -> set[Naming]:
    return {marks[name] for name in adapter.modules if name in marks}


def _most_common(family: Family, cohort: Cohort, marks: Mapping[str, Naming]) -> Naming | None:
    """The naming that the clients get, of equally common ones the newest; None where most clients
    have modules of several namings, so that these are modules of their own."""
    each = [_namings(adapter, marks) for adapter in cohort.adapters]
    if 2 * sum(len(own) > 1 for own in each) > len(each):
        return None
    found = Counter(naming for own in each if len(own) == 1 for naming in own)
    return max(family, key=found.__getitem__) if found else None


def _changes(before: Sequence[Adapter], after: Sequence[Adapter], target: Naming) -> list[Remark]:
    """A note on the clients whose modules got other names."""
    own, changed = {adapter.name: adapter for adapter in before}, {}
    for adapter in after:
        if adapter is own[adapter.name]:
            continue
        old = next(m for n, m in own[adapter.name].modules.items() if n not in adapter.modules)
        new = next(m for m in adapter.modules.values() if m.key_A == old.key_A)
        changed[adapter.name] = f"{quoted(old.name)} is {quoted(new.name)}"
    if not changed:
        return []
    text = (
        f"modules of {first_few(changed)} go by the names of {target.title}: "
        f"{next(iter(changed.values()))}"
    )
    return [note("modules_renamed", text)]


def _in_naming(
    adapter: Adapter, *, family: Family, marks: Mapping[str, Naming], target: Naming
) -> Adapter:
    """The adapter with its modules' names in another naming; itself if they are so, or if it has
    names of several.

    Raises:
        RejectedClient: no translation.
    """
    namings = _namings(adapter, marks)
    if target in namings or len(namings) > 1:
        return adapter
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in adapter.modules:
        # a name without marks may still be another in the others' naming ("lm_head")
        own = next(iter(namings), None) or naming_without_marks(name, family, target)
        there = name if own is None else translated(name, own, target)
        if there is not None and there in taken:
            raise RejectedClient(
                f"two of its modules are {quoted(there)} in the names of {target.title}",
                module=name,
                hint="have it export the adapter as the others do",
            )
        if own is not None and there is None:
            raise RejectedClient(
                f"its modules have the names of {own.title}, the others' have those of "
                f"{target.title}, and there is no translation: the layers are not the same",
                module=name,
                found=f"names of {own.title}",
                expected=f"names of {target.title}",
                hint="have it export the adapter as the others do",
            )
        names[name] = there or name
        taken.add(names[name])
    return adapter if all(a == b for a, b in names.items()) else _renamed(adapter, names)


def _given(option: str, adapter: Adapter, change: Callable[[Adapter], Adapter]) -> Adapter:
    try:
        return change(adapter)
    except RejectedClient as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from None


def _with_part(adapter: Adapter) -> Adapter:
    """See `with_main_part`."""
    if adapter.prefix:
        return adapter
    names = with_main_part(list(adapter.modules))
    if not names or not names.keys().isdisjoint(names.values()):
        return adapter
    every = {name: names.get(name, name) for name in adapter.modules}
    return adapter if len(set(every.values())) < len(every) else _renamed(adapter, every)


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """The adapter with other names of modules, which a file that is written may have too."""
    modules = {
        names[old]: replace(module, name=names[old], written=names[old])
        for old, module in adapter.modules.items()
    }
    return replace(adapter, modules=dict(sorted(modules.items())))
