"""What the user trusts: clients by name, bound to a hash or not, and an adapter of their own."""

from __future__ import annotations

import difflib
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.base_names import is_local_path, one_base
from clair_cli.adapters.layout import Layout
from clair_cli.cohort.majority import majority_modules
from clair_cli.cohort.model import Cohort, Rejection
from clair_cli.errors import InputRefused, UsageError
from clair_cli.text import by_spelling, first_few, quoted

TRUST_ADAPTER = "the trust adapter"
"""What the user's own adapter is called in sentences."""


def trusted_clients(
    given: Mapping[str, str | None], names: Sequence[str], excluded: Container[str]
) -> dict[str, str | None]:
    r"""The trusted clients and the hashes that they are bound to.

    Args:
        given: name to SHA-256 (hex) or None. A name that is not UTF-8 may be spelt as the report
            does (`\xNN` for each such byte), where nobody else is called so.
        names: of all clients that are not left out on request.
        excluded: names of the clients that are.

    Raises:
        UsageError: nobody is called so, or the client is left out on request.
    """
    spelt, found = by_spelling(names), {}
    for name, sha256 in given.items():
        name = spelt.get(name, name)
        if name in excluded:
            raise UsageError(f"client {quoted(name)} is in --trust and in --exclude")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise UsageError(
                f"no client is called {quoted(name)}, so it can't be trusted",
                hint=f"did you mean {quoted(close[0])}?" if close else "",
            )
        found[name] = sha256
    return found


def check_hashes(trusted: Mapping[str, str | None], cohort: Cohort) -> None:
    """Compare the trusted clients' files with the hashes that they are bound to.

    Raises:
        UsageError: another hash.
    """
    hashes = {adapter.name: adapter.sha256 for adapter in cohort.adapters}
    found = {**hashes, **{client.name: client.sha256 for client in cohort.rejected}}
    for name, wanted in trusted.items():
        if wanted is not None and found[name] not in (None, wanted):
            raise UsageError(
                f"trusted client {quoted(name)} has sha256 {found[name]}, --trust says {wanted}",
                hint="find out who changed it; trust it without a hash only if that is right",
            )


def lost_trusted(trusted: Container[str], rejected: Sequence[Rejection]) -> InputRefused | None:
    """The refusal of a round in which a trusted client is rejected; else None."""
    for client in rejected:
        if client.name in trusted:
            return InputRefused(
                f"trusted {client.message}",
                hint=client.hint or "mend it, or leave it out of --trust",
            )
    return None


def fitting(
    adapter: Adapter,
    clients: Sequence[Adapter],
    layouts: Mapping[str, Layout],
    *,
    same_base: bool = False,
) -> Adapter:
    """The user's own adapter as one that is compared with the clients: only modules that they have.

    Args:
        clients: those that are comparable with one another.
        layouts: of the modules in which they are compared.
        same_base: whether all names of base models mean one.

    Raises:
        UsageError: another base model or kind of adapter than the clients', or it lacks a module
            that most clients have, or has it in another shape.
    """
    if not same_base:
        _check_base(adapter, clients)
    _check_config(adapter, clients)
    common, kept = majority_modules(clients), {}
    if missing := sorted(common - adapter.modules.keys()):
        noun = "module" if len(missing) == 1 else "modules"
        raise UsageError(
            f"--trust-adapter: it lacks {len(missing):,} {noun} that most clients have "
            f"({first_few(missing)})"
        )
    for name, module in adapter.modules.items():
        if layouts.get(name) == module.layout:
            kept[name] = module
        elif name in common:
            raise UsageError(
                f"--trust-adapter: module {quoted(name)} has shape {module.layout}, the clients "
                f"have {layouts[name]}"
            )
    return replace(adapter, modules=kept)


def _check_base(adapter: Adapter, clients: Sequence[Adapter]) -> None:
    """Compare the base model's name with the clients'; paths can't be compared."""
    own = adapter.config.base_model_name_or_path or ""
    named = [c.config.base_model_name_or_path or "" for c in clients]
    theirs = [name for name in named if name and not is_local_path(name)]
    if own and not is_local_path(own):
        same = one_base([own, *theirs])
        _check_same("base_model_name_or_path", same[own], {same[name] for name in theirs})


def _check_config(adapter: Adapter, clients: Sequence[Adapter]) -> None:
    own = adapter.config
    say = [c.config for c in clients if c.config.raw] if own.raw else []
    _check_same("fan_in_fan_out", str(own.fan_in_fan_out), {str(c.fan_in_fan_out) for c in say})
    _check_same("init_lora_weights", own.guarded_init, {c.guarded_init for c in say})


def _check_same(field: str, own: str, theirs: Set[str]) -> None:
    """Compare one field with the clients'; what they don't say can't be compared."""
    if not theirs or own in theirs:
        return
    raise UsageError(
        f"--trust-adapter: its {field} is {quoted(own or 'ordinary')}, the clients have "
        f"{first_few(value or 'ordinary' for value in theirs)}",
        hint="give an adapter that was trained as the clients' are",
    )
