"""What a server remembers from round to round, in memory and as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clair_cli.errors import ClairError, UsageError
from clair_cli.federated.bank import Bank, bank_of
from clair_cli.federated.clients import Kind
from clair_cli.federated.forms import Form, form_from
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.check import open_safetensors
from clair_cli.formats.safetensors.source import tensor_of
from clair_cli.formats.safetensors.writer import SafetensorsParts
from clair_cli.formats.strict_json import parse_strict
from clair_cli.output.publish import Output, publish
from clair_cli.report.earlier import EARLIER_ROUNDS, EarlierRound, Sight, round_of
from clair_cli.report.model import Report
from clair_cli.store.address import RemotePath
from clair_cli.text import quoted

KEPT_BANKS = 4  # adapters that a late reply may have started from
KEPT_ROUNDS = 100  # records of what was found
SCHEMA = "clair.server/1"
_FIELD = "clair_server"  # of the file's header
_MAX_HEADER = 256 * 2**20


@dataclass(frozen=True)
class Record:
    """What one round found.

    Attributes:
        round: its number. outcome: "judged", "undetermined" or "refused".
        verdicts, weights: by client.
        p_honest, power: by client, as in the report; None where there is none.
        sha256: of the merged adapter; None where there was none.
    """

    round: int
    outcome: str
    verdicts: Mapping[str, str]
    weights: Mapping[str, float]
    p_honest: Mapping[str, float | None]
    power: Mapping[str, float | None]
    sha256: str | None


def record_of(number: int, report: Report) -> Record:
    """What a round's report leaves behind."""
    clients = report.clients
    return Record(
        number,
        report.cohort.outcome,
        {client.name: client.verdict for client in clients},
        {client.name: client.weight for client in clients},
        {client.name: client.p_honest for client in clients},
        {client.name: client.power for client in clients},
        None if report.merged is None else report.merged.sha256,
    )


@dataclass
class State:
    """Everything that changes.

    Attributes:
        round: how many there were. current: the one whose merge all start from; 0 for none yet.
        banks: by round, the last adapters; of round 0 the clients' start, if it is not fresh.
        sent: by client, the round of the adapter that was last made for it.
        forms: by client, of its state dict. usual: that of most merged clients.
        fields: the config of a client of the usual form.
        kind: of arrays that came last.
        history: the last rounds, the oldest first.
        earlier: what the last rounds that made a merge saw of each client, the last one first.
    """

    round: int = 0
    current: int = 0
    banks: dict[int, Bank] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    usual: Form | None = None
    fields: Any = None
    kind: Kind = "torch"
    history: list[Record] = field(default_factory=list)
    earlier: list[EarlierRound] = field(default_factory=list)

    @property
    def bank(self) -> Bank | None:
        """What all start from; None for a fresh adapter."""
        return self.banks.get(self.current)

    def adopt(self, bank: Bank) -> None:
        """Start the next round from a new adapter."""
        self.current = self.round
        self.banks[self.current] = bank
        merged = sorted(version for version in self.banks if version)
        for version in merged[:-KEPT_BANKS]:
            del self.banks[version]

    def remember(self, report: Report) -> None:
        """Add a round to the history, and what it saw to what later ones go by."""
        self.history = [*self.history, record_of(self.round, report)][-KEPT_ROUNDS:]
        if report.merged is not None:
            seen = round_of(report, f"round {self.round}")
            self.earlier = [seen, *self.earlier][:EARLIER_ROUNDS]


def write_state(path: Path, arguments: Mapping[str, Any], state: State) -> None:
    """Write a server to one file; see `Server.save`."""
    tensors = {
        f"{version}/{key}": tensor
        for version, bank in state.banks.items()
        for key, tensor in bank.tensors.items()
    }
    forms: list[Form] = []
    for form in [*state.forms.values(), *([state.usual] if state.usual else [])]:
        if form not in forms:
            forms.append(form)
    plain = {
        "schema": SCHEMA,
        "arguments": {name: _plain(name, value) for name, value in arguments.items()},
        "round": state.round,
        "current": state.current,
        "configs": {str(version): bank.config for version, bank in state.banks.items()},
        "sent": state.sent,
        "form_list": [form.plain() for form in forms],
        "forms": {name: forms.index(form) for name, form in state.forms.items()},
        "usual": None if state.usual is None else forms.index(state.usual),
        "fields": state.fields,
        "kind": state.kind,
        "history": [asdict(record) for record in state.history],
        "earlier": [asdict(seen) for seen in state.earlier],
    }
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    made = SafetensorsParts(tensors, {_FIELD: text})
    for name, tensor in tensors.items():
        made.add(name, tensor)
    publish([Output(path, made.parts(), force=True)])


def _earlier_round(plain: Mapping[str, Any]) -> EarlierRound:
    clients = {
        name: Sight(float(one["loading"]), float(one["loading_se"]), str(one["verdict"]))
        for name, one in plain["clients"].items()
    }
    return EarlierRound(**{**plain, "clients": clients})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (Path, RemotePath)):
        return value.as_posix()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} is a {type(value).__name__}, which no file of a server can hold",
            hint="give a path or plain values" if name == "trust_adapter" else "",
        ) from None
    return value


def read_state(path: Path) -> tuple[dict[str, Any], State]:
    """The arguments and the state of a server as `write_state` wrote it.

    Raises:
        UsageError: it is no such file.
    """
    shown = quoted(path.as_posix())
    limits = Limits(max_file_bytes=2**62, max_header_bytes=_MAX_HEADER, max_tensors=10**6)
    try:
        file = open_safetensors(Path(path.resolve()), limits, shown=path.as_posix())
        text = file.metadata[_FIELD].encode("utf-8")
        plain = parse_strict(text, "the server's state", _MAX_HEADER)
        if plain["schema"] != SCHEMA:
            raise UsageError(f"{shown} has schema {quoted(plain['schema'])}, expected {SCHEMA}")
        own = dict(plain["arguments"])
        banks = {}
        for version, config in plain["configs"].items():
            begin = f"{version}/"
            keys = [key for key in file.tensors if key.startswith(begin)]
            tensors = {key[len(begin) :]: tensor_of(file, key) for key in keys}
            banks[int(version)] = bank_of(tensors, config, Limits())
        forms = [form_from(one) for one in plain["form_list"]]
        state = State(
            plain["round"], plain["current"], banks, dict(plain["sent"]),
            {name: forms[index] for name, index in plain["forms"].items()},
            None if plain["usual"] is None else forms[plain["usual"]],
            plain["fields"], plain["kind"],
            [Record(**record) for record in plain["history"]],
            [_earlier_round(seen) for seen in plain.get("earlier", [])],
        )  # fmt: skip
    except UsageError:
        raise
    except ClairError as error:
        raise UsageError(f"server {shown}: {error.message}", hint=error.hint) from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"{shown} is no file of a server ({quoted(str(error), 80)})") from None
    return own, state
