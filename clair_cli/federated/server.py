"""One federated round after another: state dicts in, the next adapter out, no framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from clair_cli.adapters.config import parse_config
from clair_cli.cohort.memory import plain_config
from clair_cli.errors import ClairError, InputRefused, RejectedClient, UsageError
from clair_cli.federated.bank import bank_of
from clair_cli.federated.clients import (
    OWN_FIELDS,
    configs_by_name,
    in_kind,
    kind_of,
    names_of,
    text_of,
    unpacked,
    weights_of,
)
from clair_cli.federated.forms import Form, cut, form_for
from clair_cli.federated.prepare import Prepared, prepare
from clair_cli.federated.result import Result
from clair_cli.federated.state import Record, State, read_state, write_state
from clair_cli.report.earlier import Chain
from clair_cli.report.model import Report
from clair_cli.settings import Settings, make_settings
from clair_cli.store.address import local_path
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.run import merge_cohort
from clair_cli.workflow.weight_cap import CapTooSmall
from clair_cli.workflow.write import WrittenAdapter

OPTIONS = frozenset((
    "allow_undetermined", "base_model", "device", "dtype", "error_target", "fail_on", "heads",
    "limit", "min_clients", "minority", "modules", "same_base", "tensor_names", "threads",
    "trust_adapter",
))  # fmt: skip
"""Options of `clair_cli.merge` that a server takes; the values of others it knows itself."""


class Server:
    """Judges each round's clients, merges the benign ones, and remembers what the next one needs.

    Names of clients may be anything hashable that has a text; reports and files have the text.

    Args:
        config: the clients' `peft.LoraConfig` or its fields: one for all, or by client. None only
            where the tensors say the scale (kohya).
        rank: of the adapter that the server keeps: "same" is the clients', of mixed ones the
            largest. What is sent always has the rank and alpha of the one who gets it.
        keep_alpha: keep the clients' alpha where all have the same rank and scale.
        trust: clients known to be good; those of a round that are in it count.
        max_weight: no client has more than this share of a merge, whatever number of samples it
            claims; where that is less than an equal share, no weights count.
        fresh: the first round's clients start from a fresh adapter (B = 0), unless `start_from`
            says otherwise.
        options: see `OPTIONS`; what each means stands in `clair_cli.merge`.

    Raises:
        UsageError, TypeError: a wrong argument. `aggregate` raises neither for what clients send.
    """

    def __init__(
        self,
        config: Any = None,
        rank: int | Literal["auto", "same", "full"] = "same",
        keep_alpha: bool = True,
        trust: Sequence[Hashable] = (),
        max_weight: float = 0.25,
        fresh: bool = True,
        **options: Any,
    ) -> None:
        if unknown := sorted(options.keys() - OPTIONS):
            raise TypeError(f"Server() got an unexpected keyword argument {unknown[0]!r}")
        if isinstance(trust, (str, bytes)):
            raise UsageError("trust is a text, expected a list of clients")
        self._config, self._by_name = configs_by_name(config)
        self._fresh, self._trust = bool(fresh), tuple(map(text_of, trust))
        self._options: dict[str, Any] = {
            "rank": rank, "keep_alpha": keep_alpha, "max_weight": max_weight, **options,
        }  # fmt: skip
        self._limits = make_settings("merge", {}, None, self._options).limit  # checks all
        self._state = State()

    @property
    def round(self) -> int:
        """How many rounds there were, lost ones counted."""
        return self._state.round

    @property
    def history(self) -> tuple[Record, ...]:
        """What was found in the last rounds (at most 100), the oldest first."""
        return tuple(self._state.history)

    @property
    def tensors(self) -> dict[str, Any] | None:
        """The last merge in the form of most merged clients' state dicts; None before the first."""
        state = self._state
        return self._in_form(state.usual) if state.current else None

    def start_from(self, tensors: Mapping[str, Any], config: Any = None) -> None:
        """Say what the clients start from before the first merge, where it is no fresh adapter.

        Args:
            tensors: a state dict as theirs. Where its update is zero it counts as fresh.
            config: its own; None for the clients', the first one that fits.

        Raises:
            UsageError: it is no adapter of that config, or there was a merge already.
        """
        if self._state.current:
            raise UsageError("start_from comes before the first merge")
        own = [plain_config(config)] if config is not None else [*self._by_name.values()]
        for fields in own or [self._config]:  # of several, one whose rank it has
            try:
                bank = bank_of(tensors, fields, self._limits)
                break
            except UsageError as error:
                wrong = error
        else:
            raise wrong
        self._state.banks = {} if bank.is_fresh() else {0: bank}

    def aggregate(
        self, states: Mapping[Any, Any], weights: Mapping[Any, Any] | None = None
    ) -> Result:
        """Judge and merge one round.

        Args:
            states: client to state dict, of torch tensors or numpy arrays (or what has a method
                `numpy()`, as Flower's), or to `(state dict, config)` of a client whose config the
                server does not have; or has but for its own `OWN_FIELDS`. A client that sent
                nothing is not in it.
            weights: client to number, such as the samples it claims. A client whose number is
                missing, or is not finite and above 0, is rejected. None for equal ones.

        Returns:
            What was found. Who can't be used is `rejected` in the report, with why; a round that
            can't be used leaves the last adapter as it is.
        """
        state = self._state
        state.round += 1
        states = {client: unpacked(sent) for client, sent in states.items()}
        state.kind = kind_of(states.values()) or state.kind
        found = None
        try:
            names = names_of(states)
            refused, numbers = weights_of(names, weights)
            clients = {
                name: self._pair(name, states[client], refused.get(name))
                for client, name in names.items()
            }
            prepared = prepare(state, clients, self._limits)
            report, found = self._merged(prepared, numbers)
        except ClairError as error:  # of the round as a whole: no client could be named for it
            report = self._refused(error)
        state.remember(report)
        why = "; ".join(filter(None, [report.cohort.outcome_text, report.cohort.remedy]))
        if found is None:
            why = why or f"fail_on is {self._options.get('fail_on')}, and somebody was found so"
            return Result("keep", why, None, None, report, state.round)
        self._adopt(prepared, report, found)
        return Result("use", why, self.tensors, state.fields, report, state.round)

    def adapter_for(self, client: Hashable) -> dict[str, Any] | None:
        """What a client starts its next round from, in the form that its model takes: its own rank,
        alpha, names and dtype; None for a fresh adapter. Who sends adapters this way does so to all
        clients, in every round.

        A client's reply counts as started from the last adapter that was made for it; without one,
        from the last merge in the client's own form.
        """
        name, state = text_of(client), self._state
        state.sent[name] = state.current
        return None if state.bank is None else self._in_form(self._form(name))

    def save(self, path: str | Path) -> None:
        """Write all of the server to one safetensors file, whole or not at all; an older one is
        replaced.

        Raises:
            UsageError: the path, or an option that is no plain value (give `trust_adapter` as a
                path).
            OutputError: it can't be written; what was there is untouched.
        """
        own = {
            "config": self._by_name or self._config,
            "trust": self._trust, "fresh": self._fresh, **self._options,
        }  # fmt: skip
        write_state(local_path(path, "the file"), own, self._state)

    @classmethod
    def load(cls, path: str | Path, **changed: Any) -> Server:
        """A server as `save` wrote it.

        Args:
            changed: arguments of `Server` that have other values from now on.

        Raises:
            UsageError: it is no such file.
        """
        own, state = read_state(local_path(path, "the file"))
        server = cls(**{**own, **changed})
        server._state = state
        return server

    def _pair(self, name: str, state: Any, refused: RejectedClient | None) -> tuple[Any, Any]:
        """What is compared of a client: its state dict, or why there is none, and its config."""
        both = state if isinstance(state, tuple) and len(state) == 2 else None
        known = self._config_of(name)
        state, config = both or (state, known)
        if both and isinstance(config, Mapping) and config.keys() <= {*OWN_FIELDS}:
            config = {**(known or {}), **config} or None
        return (state if refused is None else refused), config

    def _config_of(self, name: str) -> Any:
        return self._by_name.get(name, self._config)

    def _merged(
        self, prepared: Prepared, weights: Mapping[str, float] | None
    ) -> tuple[Report, WrittenAdapter | None]:
        """Merge a round; raises what `merge_cohort` does."""
        try:
            settings = self._settings(prepared, weights, {})
            report, merged = merge_cohort(settings, prepared.cohort, Destination())
        except CapTooSmall:  # even equal weights are above it
            settings = self._settings(prepared, None, {"max_weight": None})
            report, merged = merge_cohort(settings, prepared.cohort, Destination())
        return prepared.described(report), merged

    def _settings(
        self, prepared: Prepared, weights: Mapping[str, float] | None, changed: Mapping[str, Any]
    ) -> Settings:
        bank = self._state.bank
        options = {
            **self._options,
            **prepared.options(self._options["rank"]),
            "trust": tuple(name for name in self._trust if name in prepared.clients),
            "weights": weights,
            "previous": None if bank is None else (bank.tensors, bank.config),
            "fresh": bank is None and self._fresh,
        }
        if "dtype" in self._options:
            options["dtype"] = self._options["dtype"]
        settings = make_settings("merge", prepared.clients, None, {**options, **changed})
        seen = Chain(tuple(self._state.earlier))
        return replace(settings, seen=lambda _: seen)

    def _refused(self, error: ClairError) -> Report:
        """The report of a round that could not be compared."""
        refusal = InputRefused(error.message, hint=error.hint)
        settings = make_settings("merge", {}, None, self._options)
        report, _ = merge_cohort(settings, refusal, Destination())
        return report

    def _adopt(self, prepared: Prepared, report: Report, merged: WrittenAdapter) -> None:
        """Make a merge what all start from."""
        state = self._state
        state.adopt(bank_of(merged.tensors, dict(merged.config) or None, self._limits))
        usable = {client.name for client in report.clients if client.verdict != "rejected"}
        state.forms |= {name: form for name, form in prepared.forms.items() if name in usable}
        names = [client.name for client in report.clients if client.weight > 0]
        known = [(name, state.forms[name]) for name in names if name in prepared.forms]
        counts = Counter(_ranks(form) for _, form in known)
        most = max(counts.items(), key=lambda item: (item[1], item[0]), default=((), 0))[0]
        usual = next(((name, form) for name, form in known if _ranks(form) == most), None)
        state.usual = None if usual is None else usual[1]
        state.fields = dict(merged.config)
        if usual is not None and prepared.origin[usual[0]].config.raw:
            state.fields = dict(prepared.origin[usual[0]].config.raw)

    def _form(self, name: str) -> Form | None:
        """The form of a client's state dict; of one that sent none yet, by its config."""
        state = self._state
        if name in state.forms or state.usual is None:
            return state.forms.get(name)
        config = self._config_of(name)
        try:
            return state.usual if config is None else form_for(parse_config(config), state.usual)
        except RejectedClient:  # what it sends will be rejected too
            return state.usual

    def _in_form(self, form: Form | None) -> dict[str, Any]:
        bank = self._state.bank
        assert bank is not None
        tensors = bank.tensors if form is None else cut(bank.adapter, form)
        return in_kind(tensors, self._state.kind)


def _ranks(form: Form) -> tuple[tuple[str, int, float], ...]:
    return tuple((name, pair.rank, pair.scaling) for name, pair in form.pairs.items())
