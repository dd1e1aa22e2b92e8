"""One round's clients, checked, and as if all had started from the adapter that the server keeps.

A client of lower rank starts from the bank's leading components, and a late one from an older bank.
Compared with the bank itself, each would seem to take away what it never had: so its own start is
taken off, and the bank put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.memory import adapters_from_memory
from clair_cli.cohort.model import Cohort
from clair_cli.errors import RejectedClient
from clair_cli.federated.forms import (
    Form,
    cut,
    form_of,
    loses_nothing,
    started_from_bank,
    usual_dtype,
    with_the_rest,
)
from clair_cli.federated.state import KEPT_BANKS, State
from clair_cli.formats.limits import Limits
from clair_cli.report.model import Report

Clients = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Prepared:
    """One round's clients, ready to be compared.

    Attributes:
        clients: by name, `(state dict, config)` as they are compared.
        cohort: the same, checked.
        origin: the usable ones as they came. forms: of their state dicts, where those give one.
        moved: names of those who did not start from the bank itself.
    """

    clients: Clients
    cohort: Cohort
    origin: Mapping[str, Adapter]
    forms: Mapping[str, Form]
    moved: frozenset[str]

    def options(self, rank: Any) -> dict[str, Any]:
        """How the merge is written: as the clients' adapters are where these are of one rank and
        scale, else with the largest rank and a scale of 1.

        Args:
            rank: that of the server's own options.
        """
        modules = [m for adapter in self.origin.values() for m in adapter.modules.values()]
        shapes = {(m.rank, m.scaling) for m in modules}
        if len(shapes) <= 1 and not self.moved:
            return {}
        options: dict[str, Any] = {"keep_alpha": False}
        if rank == "same":
            options["rank"] = max(m.rank for m in modules)
        if self.moved:  # they may be in float64
            options["dtype"] = usual_dtype(self.origin.values())
        return options

    def described(self, report: Report) -> Report:
        """A report with ranks and scales as the clients sent them."""
        clients = []
        for client in report.clients:
            own = self.origin.get(client.name)
            if own is not None and client.name in self.moved:
                modules = {
                    name: replace(scores, rank=own.modules[name].rank,
                                  scaling=own.modules[name].scaling)
                    if name in own.modules else scores
                    for name, scores in client.modules.items()
                }  # fmt: skip
                ranks = tuple(sorted({m.rank for m in own.modules.values()}))
                scales = tuple(sorted({m.scaling for m in own.modules.values()}))
                client = replace(client, ranks=ranks, scales=scales, modules=modules)
            clients.append(client)
        return replace(report, clients=tuple(clients))


def prepare(state: State, clients: Clients, limits: Limits) -> Prepared:
    """Check a round's clients, and move those who started elsewhere.

    Args:
        clients: by name, `(state dict or RejectedClient, config)`.

    Raises:
        InputRefused: none, or too many.
    """
    cohort = adapters_from_memory(clients, limits=limits)
    origin = {adapter.name: adapter for adapter in cohort.adapters}
    forms = {name: form for name, a in origin.items() if (form := form_of(a)) is not None}
    changed: dict[str, tuple[Any, Any]] = {}
    for name, adapter in origin.items():
        pair = _moved(state, adapter, forms.get(name), clients[name][1])
        if pair is not None:
            changed[name] = pair
    if not changed:
        return Prepared(clients, cohort, origin, forms, frozenset())
    again = adapters_from_memory(changed, limits=limits)
    moved = {
        a.name: replace(a, sha256=origin[a.name].sha256, notes=origin[a.name].notes)
        for a in again.adapters
    }
    adapters = (moved.get(a.name, a) for a in cohort.adapters
                if a.name in moved or a.name not in changed)  # fmt: skip
    rejected = (*cohort.rejected, *again.rejected)
    cohort = replace(cohort, adapters=tuple(adapters), rejected=rejected)
    for gone in again.rejected:
        origin.pop(gone.name), forms.pop(gone.name, None)
    return Prepared({**clients, **changed}, cohort, origin, forms, frozenset(moved))


def _moved(
    state: State, adapter: Adapter, form: Form | None, config: Any
) -> tuple[Any, Any] | None:
    """A client's `(state dict, config)` as if it had started from the bank; None if it did, or if
    its form is not known or not the bank's. A start that is no longer kept is a rejection."""
    version = state.sent.get(adapter.name, state.current)
    start = state.banks.get(version)
    if version and start is None:
        error = RejectedClient(
            f"it started from the adapter of round {version}, which is no longer kept",
            found=f"the adapter of round {version}",
            expected=f"one of the last {KEPT_BANKS} adapters",
            hint="send it the last one, and let it train again",
        )
        return error, config
    here = version == state.current and (start is None or loses_nothing(start.adapter, form))
    bank = None if state.bank is None else state.bank.adapter
    if here or form is None or not adapter.modules or not _fits(adapter, bank):
        return None
    if version == state.current and bank is not None:
        whole = with_the_rest(adapter, form, bank)
        if whole is not None:
            return whole
    before = {} if start is None else cut(start.adapter, form)
    return started_from_bank(adapter, before, form, bank)


def _fits(adapter: Adapter, bank: Adapter | None) -> bool:
    """Whether a client's modules have the bank's shapes; if not, it is rejected as it came."""
    kept = {} if bank is None else bank.modules
    return all(m.layout == kept[n].layout for n, m in adapter.modules.items() if n in kept)
