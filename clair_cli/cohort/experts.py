"""Layers of fused experts: the same number of experts and the same parameters in all clients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.names.parts import Expert
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.text import first_few, quoted


def layer_of(module: LoraModule) -> str | None:
    """The layer whose experts' factors are one pair of tensors with this module's; else None."""
    return None if module.expert is None else module.name.removesuffix(module.expert.suffix)


def layers_of(adapters: Sequence[Adapter]) -> dict[str, str]:
    """Module to its layer, for all fused experts."""
    return {
        name: layer
        for adapter in adapters
        for name, module in adapter.modules.items()
        if (layer := layer_of(module)) is not None
    }


def with_same_experts(cohort: Cohort, given: Mapping[str, Adapter | None]) -> Cohort:
    """Reject clients with another number of experts in a layer than most clients that have it, or
    with other parameters: which of them a pair of tensors belongs to is not in the file, and its
    name depends on the others.

    Args:
        given: adapters beside the clients, by option of the command line.

    Raises:
        UsageError: one of `given` has other experts than most clients.
    """
    found: dict[str, dict[str, Expert]] = defaultdict(dict)
    for adapter in cohort.adapters:
        for module in adapter.modules.values():
            layer = layer_of(module)
            if layer is not None and module.expert is not None:
                found[layer].setdefault(adapter.name, module.expert)
    errors: dict[str, RejectedClient] = {}
    for layer, experts in sorted(found.items()):
        kinds = Counter(_kind(expert) for expert in experts.values())
        top = max(kinds, key=lambda kind: (kinds[kind], kind))
        for option, own in ((o, _expert_in(a, layer)) for o, a in given.items()):
            if own is not None and _kind(own) != top:
                error = _error(layer, _kind(own), top, kinds)
                raise UsageError(f"{option}: module {quoted(layer)}: {error.message}")
        for name, expert in experts.items():
            if _kind(expert) != top:
                errors.setdefault(name, _error(layer, _kind(expert), top, kinds))
    if not errors:
        return cohort
    refused: list[Rejection] = [
        rejection(errors[a.name], a.name, a.path, a.sha256)
        for a in cohort.adapters if a.name in errors
    ]  # fmt: skip
    kept = tuple(a for a in cohort.adapters if a.name not in errors)
    return replace(cohort, adapters=kept, rejected=(*cohort.rejected, *refused))


def _expert_in(adapter: Adapter | None, layer: str) -> Expert | None:
    """One of an adapter's experts in a layer; None if it has none there."""
    modules = {} if adapter is None else adapter.modules
    found = modules.get(f"{layer}[0]")  # the first one is always there
    return None if found is None else found.expert


_Kind = tuple[int, tuple[str, ...]]


def _kind(expert: Expert) -> _Kind:
    return expert.count, expert.parameters


def _error(layer: str, own: _Kind, top: _Kind, kinds: Counter[_Kind]) -> RejectedClient:
    return RejectedClient(
        f"fused experts: {_words(own)}, {kinds[top]} of {kinds.total()} clients have {_words(top)}",
        module=layer,
        found=_words(own),
        expected=_words(top),
    )


def _words(kind: _Kind) -> str:
    count, parameters = kind
    of = f" of {first_few(parameters)}" if parameters else ""
    return f"{count:,} experts{of}"
