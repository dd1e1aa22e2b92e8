"""The clients' dense tensors (heads, biases, token rows) before any is read: `--heads`, and forms.

A client whose tensor has another form (label set, vocabulary, rows) than most is rejected by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.dense import DenseTensor
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.remark import Remark, warning
from clair_cli.text import first_few, quoted

_DROP = "--heads drop merges the LoRA alone"


@dataclass(frozen=True)
class HeadTensor:
    """A dense tensor over the clients of a round.

    Attributes:
        name: of the parameter; of a `lora_B.bias`, with its module's name in the round.
        module: of a `lora_B.bias`, that name; else "".
        kind, shape, rows: as in `DenseTensor`, the same in all clients.
        own: each client's, by index in the round, ascending.
        equal: whether it is the same, value by value, in all of them.
    """

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    own: Mapping[int, DenseTensor]
    equal: bool


def choose_heads(cohort: Cohort, heads: str) -> tuple[Cohort, tuple[Remark, ...]]:
    """The cohort as `--heads` has it, and remarks.

    Args:
        heads: "average": clients of another form than most are rejected. "drop": nobody has a
            dense tensor. "reject": whoever has one is rejected.

    Raises:
        InputRefused: no form has a majority, among most of the clients.
    """
    having = [adapter for adapter in cohort.adapters if adapter.dense]
    if not having:
        return cohort, ()
    if heads == "average":
        return _of_one_form(cohort)
    names = sorted({name for adapter in having for name in adapter.dense})
    if heads == "drop":
        adapters = tuple(replace(a, dense={}) if a.dense else a for a in cohort.adapters)
        text = (
            f"{len(names):,} tensors beside the LoRA ({first_few(names)}) of {len(having):,} "
            "clients left out: the result goes with the base model's own"
        )
        return replace(cohort, adapters=adapters), (warning("heads_dropped", text),)
    errors = {a.name: _refused(a) for a in having}
    return _without(cohort, errors), ()


def _refused(adapter: Adapter) -> RejectedClient:
    listed = first_few(adapter.dense)
    return RejectedClient(
        f"it has tensors beside the LoRA, and --heads reject allows none: {listed}",
        found=listed,
        expected="LoRA pairs only",
        hint="give --heads average, or drop",
    )


def _of_one_form(cohort: Cohort) -> tuple[Cohort, tuple[Remark, ...]]:
    """The clients whose dense tensors have the form that most have."""
    errors: dict[str, RejectedClient] = {}
    gone: set[str] = set()
    notes = []
    holders: dict[str, list[Adapter]] = defaultdict(list)
    for adapter in cohort.adapters:
        for name in adapter.dense:
            holders[name].append(adapter)
    for name in sorted(holders):
        having = [a for a in holders[name] if a.name not in errors]
        forms: dict[object, list[Adapter]] = defaultdict(list)
        for adapter in having:
            forms[adapter.dense[name].form].append(adapter)
        if len(forms) < 2:
            continue
        most = max(forms.values(), key=len)
        listed = "; ".join(
            f"{len(some)} have {_form(some[0].dense[name])} ({first_few(a.name for a in some)})"
            for some in sorted(forms.values(), key=lambda some: (-len(some), some[0].name))[:5]
        )
        if 2 * len(most) <= len(having):
            if 2 * len(having) > len(cohort.adapters):
                raise InputRefused(
                    f"no majority for the form of {quoted(name)}: {listed}",
                    hint=f"leave clients out with --exclude; {_DROP}",
                )
            gone.add(name)
            text = f"{quoted(name)} left out, as no form has a majority: {listed}"
            notes.append(warning("heads_left_out", text))
            continue
        expected = most[0].dense[name]
        for adapter in having:
            if (own := adapter.dense[name]).form != expected.form:
                errors[adapter.name] = RejectedClient(
                    f"{quoted(name)} has {_form(own)}, {len(most)} of {len(having)} clients have "
                    f"{_form(expected)}",
                    found=_form(own),
                    expected=_form(expected),
                    hint=f"it has another label set or vocabulary; {_DROP}",
                )
    cohort = _without(cohort, errors)
    if gone:
        adapters = (
            replace(a, dense={n: d for n, d in a.dense.items() if n not in gone})
            for a in cohort.adapters
        )
        cohort = replace(cohort, adapters=tuple(adapters))
    return cohort, tuple(notes)


def _form(tensor: DenseTensor) -> str:
    rows = f" for rows {first_few(map(str, tensor.rows))}" if tensor.rows else ""
    return f"shape {tensor.shape}{rows}"


def _without(cohort: Cohort, errors: Mapping[str, RejectedClient]) -> Cohort:
    """The cohort in which the clients with an error are rejected."""
    gone: list[Rejection] = [
        rejection(errors[a.name], a.name, a.path, a.sha256)
        for a in cohort.adapters
        if a.name in errors
    ]
    kept = tuple(a for a in cohort.adapters if a.name not in errors)
    return replace(cohort, adapters=kept, rejected=(*cohort.rejected, *gone))


def head_tensors(adapters: Sequence[Adapter]) -> tuple[HeadTensor, ...]:
    """The dense tensors of some clients, sorted by name."""
    found: dict[str, dict[int, DenseTensor]] = defaultdict(dict)
    modules: dict[str, str] = {}
    for k, adapter in enumerate(adapters):
        names = {module.written: name for name, module in adapter.modules.items()}
        for name, tensor in adapter.dense.items():
            if tensor.kind == "lora_bias":
                if tensor.module not in names:  # a module that is not compared
                    continue
                module = names[tensor.module]
                name = f"{module}.lora_B.bias"
                modules[name] = module
            found[name][k] = tensor
    result = []
    for name in sorted(found):
        own = found[name]
        first = next(iter(own.values()))
        values = {(adapters[k].source.tensors[t.key].digest, t.dtype, t.scaling)
                  for k, t in own.items()}  # fmt: skip
        result.append(
            HeadTensor(
                name, modules.get(name, ""), first.kind, first.shape, first.rows, own,
                len(values) == 1,
            )
        )  # fmt: skip
    return tuple(result)
