"""The clients of a cohort that can be compared and merged: minorities are rejected."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.base_names import is_local_path, last_part, one_base
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.variants import init_effect
from clair_cli.cohort.majority import ONE_GROUP, reject_by_module
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.cohort.selection import select_modules
from clair_cli.cohort.work import reject_by_work
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.formats.limits import Limits
from clair_cli.remark import Remark, note, warning
from clair_cli.settings import MODULES, Modules
from clair_cli.text import first_few, quoted


@dataclass(frozen=True)
class ComparableClients:
    """The clients that can be merged with the majority, and the modules they are compared in.

    Attributes:
        adapters: in the cohort's order, at least one.
        rejected: clients rejected here, sorted; those of `Cohort.rejected` are not repeated.
        layouts: of every module to merge, sorted by name. An adapter may have modules that are
            not in it.
        notes: remarks for the report.
    """

    adapters: tuple[Adapter, ...]
    rejected: tuple[Rejection, ...]
    layouts: dict[str, Layout]
    notes: tuple[Remark, ...]


def check_comparable(
    cohort: Cohort,
    modules: Modules = "common",
    limits: Limits | None = None,
    *,
    same_base: bool = False,
) -> ComparableClients:
    """Reject the clients that can't be merged with the majority.

    Compared are the base model's name (as text; local paths and missing names never reject, and
    names of copies of one model are the same),
    `fan_in_fan_out`, an init that changes the base or starts from data, the modules' shapes and
    number, and the number of elements to compute with.

    Args:
        cohort: as loaded.
        modules: "common": only modules that enough clients have (`fewest_holders`); a client that
            lacks one has a zero delta weight. "union": every module. "intersection": as "common",
            but a client that lacks more than half of the majority's modules is rejected. "same": a
            client that lacks one of the majority's modules is rejected.
        limits: default `Limits()`.
        same_base: whether all names of base models mean one.

    Raises:
        InputRefused: no adapter, no majority among most of the clients, or no shared module.
        ValueError: `modules` is another word.
    """
    if modules not in MODULES:
        raise ValueError(f"modules must be one of {', '.join(MODULES)}, got {modules!r}")
    if not cohort.adapters:
        count = len(cohort.rejected)
        raise InputRefused(f"no usable client ({count:,} rejected)")
    notes: list[Remark] = []
    errors: dict[str, RejectedClient] = {}
    adapters = list(cohort.adapters)
    adapters = _one_base(adapters, notes) if same_base else _same_base(adapters, errors, notes)
    says = [adapter for adapter in adapters if adapter.config.raw]
    adapters = _majority(adapters, says, "fan_in_fan_out", _fan_in_fan_out, errors, notes)
    adapters = _same_init(adapters, errors, notes)
    adapters, layouts, remarks = _by_module(adapters, modules, limits or Limits(), errors)
    notes += remarks
    _note_differences(adapters, notes)
    paths = {adapter.name: adapter for adapter in cohort.adapters}
    rejected = [
        rejection(errors[name], name, paths[name].path, paths[name].sha256)
        for name in sorted(errors, key=os.fsencode)
    ]
    return ComparableClients(tuple(adapters), tuple(rejected), layouts, tuple(notes))


def _by_module(
    adapters: list[Adapter], modules: str, limits: Limits, errors: dict[str, RejectedClient]
) -> tuple[list[Adapter], dict[str, Layout], list[Remark]]:
    """The clients whose modules can be compared, the layouts of those modules, and remarks. The
    common modules are determined again without a client that is rejected for its work."""
    while True:
        notes: list[Remark] = []
        adapters, left_out = reject_by_module(adapters, errors, notes)
        adapters, layouts = select_modules(adapters, modules, left_out, errors, notes)
        found = reject_by_work(adapters, layouts, limits)
        if not found:
            return adapters, layouts, notes
        errors.update(found)
        adapters = [adapter for adapter in adapters if adapter.name not in found]


def _fan_in_fan_out(adapter: Adapter) -> str:
    return "true" if adapter.config.fan_in_fan_out else "false"


def _init(adapter: Adapter) -> str:
    init = adapter.config.guarded_init
    return quoted(init) if init else "an ordinary one"


def _same_init(
    adapters: list[Adapter], errors: dict[str, RejectedClient], notes: list[Remark]
) -> list[Adapter]:
    """The clients of one init. A client without a config counts as one of an ordinary init, so that
    few configs never reject most clients; where the others share a guarded init, it is rejected."""
    ordinary = [adapter for adapter in adapters if not adapter.config.guarded_init]
    voters = [adapter for adapter in adapters if adapter.config.raw]
    if 2 * len(ordinary) > len(adapters):
        voters = adapters
    _majority(voters, voters, "init_lora_weights", _init, errors, notes)
    adapters = [adapter for adapter in adapters if adapter.name not in errors]
    inits = {adapter.config.guarded_init for adapter in adapters} - {""}
    for adapter in adapters:
        if inits and not adapter.config.guarded_init:
            errors[adapter.name] = RejectedClient(
                f"its init_lora_weights is not known, the other clients have {first_few(inits)}",
                found="no config",
                expected=f"init_lora_weights {first_few(inits)}",
            )
    return [adapter for adapter in adapters if adapter.name not in errors]


def _base_name(adapter: Adapter) -> str:
    return adapter.config.base_model_name_or_path or ""


def _groups(
    adapters: Sequence[Adapter], key: Callable[[Adapter], Hashable]
) -> dict[Hashable, list[str]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for adapter in adapters:
        groups[key(adapter)].append(adapter.name)
    return groups


def _majority(
    adapters: list[Adapter],
    voters: Sequence[Adapter],
    field: str,
    key: Callable[[Adapter], str],
    errors: dict[str, RejectedClient],
    notes: list[Remark],
    hint: str = "",
) -> list[Adapter]:
    """The adapters without those of `voters` that differ from the voters' strict majority.

    Without one, refuse; but if the voters are at most half of the adapters, that is only a
    note: a few clients never end a round.
    """
    groups = _groups(voters, key)
    if len(groups) < 2:
        return adapters
    top = max(groups, key=lambda value: len(groups[value]))
    if 2 * len(groups[top]) <= len(voters):
        listed = describe_groups({str(value): names for value, names in groups.items()})
        if 2 * len(voters) <= len(adapters):
            notes.append(warning("config_differs", f"{field} differs: {listed}"))
            return adapters
        raise InputRefused(
            f"no majority for {field}: {listed}", hint="; ".join(filter(None, (ONE_GROUP, hint)))
        )
    count, total = len(groups[top]), len(voters)
    wrong = {adapter.name for adapter in voters if key(adapter) != top}
    for adapter in adapters:
        if adapter.name in wrong:
            errors[adapter.name] = RejectedClient(
                f"{field} is {key(adapter)}, {count} of {total} clients have {top}",
                found=f"{field} {key(adapter)}",
                expected=f"{field} {top}",
                hint=hint,
            )
    return [adapter for adapter in adapters if adapter.name not in wrong]


def describe_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """ "2 clients have X ('a', 'b'); 1 has Y ('c')", largest group first, at most five."""
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    texts = []
    for value, names in ordered[:5]:
        verb = "client has" if len(names) == 1 else "clients have"
        texts.append(f"{len(names)} {verb} {value} ({first_few(names)})")
    if len(ordered) > 5:
        texts.append(f"{len(ordered) - 5} more groups")
    return "; ".join(texts)


def _one_base(adapters: list[Adapter], notes: list[Remark]) -> list[Adapter]:
    """All clients, as the user says that their names of the base mean one; a note on the names."""
    named = [adapter for adapter in adapters if _base_name(adapter)]
    _note_names(named, "base models of several names, one by --same-base", notes)
    return adapters


def _note_names(adapters: Sequence[Adapter], what: str, notes: list[Remark]) -> None:
    groups = _groups(adapters, lambda adapter: quoted(_base_name(adapter)))
    if len(groups) > 1:
        listed = describe_groups({str(name): names for name, names in groups.items()})
        notes.append(note("base_aliases", f"{what}: {listed}"))


def _same_base(
    adapters: list[Adapter], errors: dict[str, RejectedClient], notes: list[Remark]
) -> list[Adapter]:
    """The clients of one base model. Hub names vote, the names of one model together; local paths
    and missing names are noted."""
    voters = [a for a in adapters if _base_name(a) and not is_local_path(_base_name(a))]
    same = one_base(map(_base_name, voters))
    named = {adapter.name for adapter in voters}
    kept = _majority(
        adapters,
        voters,
        "base_model_name_or_path",
        lambda adapter: quoted(same[_base_name(adapter)]),
        errors,
        notes,
        "if these names mean one base model, give --same-base",
    )
    missing = [a.name for a in adapters if not _base_name(a)]
    if missing:
        clients = "1 client" if len(missing) == 1 else f"{len(missing)} clients"
        text = f"base model not named by {clients}: {first_few(missing)}"
        notes.append(note("base_unknown", text))
    local = [a for a in adapters if is_local_path(_base_name(a))]
    kept = [a for a in kept if a.name in named]
    for usual in sorted({same[_base_name(a)] for a in kept}):
        _note_names(
            [a for a in kept if same[_base_name(a)] == usual],
            "names that mean one base model (copies of it, or its owner's)",
            notes,
        )
    names = {last_part(_base_name(a)) for a in kept} or {last_part(_base_name(a)) for a in local}
    odd = local if len(names) != 1 else [a for a in local if last_part(_base_name(a)) not in names]
    if odd:
        listed = describe_groups(
            {
                quoted(_base_name(a)): [b.name for b in odd if _base_name(a) == _base_name(b)]
                for a in odd
            }
        )
        text = f"base model is a local path that can't be compared: {listed}"
        notes.append(note("base_path", text))
    return [adapter for adapter in adapters if adapter.name not in errors]


def _note_differences(adapters: Sequence[Adapter], notes: list[Remark]) -> None:
    revisions = _groups([a for a in adapters if a.config.revision], lambda a: a.config.revision)
    if len(revisions) > 1:
        listed = describe_groups({quoted(value): names for value, names in revisions.items()})
        notes.append(warning("revisions_differ", f"base model revisions differ: {listed}"))
    inits = {adapter.config.guarded_init for adapter in adapters} - {""}
    for init in sorted(inits):
        text = f"all clients used init_lora_weights {quoted(init)}, which {init_effect(init)}"
        notes.append(warning("guarded_init", text))
