"""Refuse clients whose rank-one components cancel: the numbers that they are judged by would not
hold for their part in the merge. See `maths.evidence.own_sizes`."""

from __future__ import annotations

import torch

from clair_cli.cohort.model import Rejection, rejection
from clair_cli.cohort.round import ClientsUnfit, Round
from clair_cli.engine.factors import stored_factors_of
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.maths.evidence.own_sizes import CANCELLING_BELOW, OwnSizes, size_alone
from clair_cli.text import quoted


def check_overcomplete(round_: Round) -> None:
    """`check_components` for modules whose rank is larger than the layer is high or broad. Their
    factors are multiplied when they are read, so the check has to come before.

    Raises:
        ClientsUnfit, UsageError: as `check_components`.
        ClientLost: a tensor changed since it was checked.
    """
    found: dict[int, Rejection] = {}
    adapters = [*enumerate(round_.compared.adapters)]
    if round_.previous is not None:
        adapters.append((-1, round_.previous))
    for k, adapter in adapters:
        for name, module in adapter.modules.items():
            if k in found or module.components == module.rank or name not in round_.module_shapes:
                continue
            norm, components = size_alone(*stored_factors_of(adapter, name), module.scaling)
            if norm < CANCELLING_BELOW * components:
                found[k] = _cancelling_client(round_, k, name, norm / components)
    if found:
        raise ClientsUnfit(list(found.values()))


def check_components(round_: Round, sizes: OwnSizes, dtype: torch.dtype) -> None:
    """Refuse delta weights far smaller than the rank-one components that they are the sum of.

    Args:
        sizes: of the clients' delta weights, in the round's order of modules and clients.
        dtype: of the products that `sizes` was computed with.

    Raises:
        ClientsUnfit: with all clients that have such a delta weight.
        UsageError: the previous adapter has one, or the user's own.
    """
    modules, found = list(round_.module_shapes), dict[int, Rejection]()
    for m, k in sizes.cancelling(dtype):
        if k not in found:
            found[k] = _cancelling_client(round_, k, modules[m], sizes.share(m, k))
    if found:
        raise ClientsUnfit(list(found.values()))


def _cancelling_client(round_: Round, k: int, module: str, share: float) -> Rejection:
    """The rejection of client k, whose components cancel in a module.

    Args:
        k: index in `Round.compared`; -1 for the previous adapter.
        share: norm of the delta weight over the size of its components.

    Raises:
        UsageError: it is the previous adapter, or the user's own.
    """
    text = (
        f"its rank-one components cancel: together they are {share:.1e} of their size, expected at "
        f"least {CANCELLING_BELOW:g}"
    )
    if k < 0 or k == len(round_.adapters):
        option = "--previous" if k < 0 else "--trust-adapter"
        raise UsageError(f"{option}: module {quoted(module)}: {text}")
    adapter = round_.adapters[k]
    error = RejectedClient(
        text,
        module=module,
        found=f"{share:.1e} of the components' size",
        expected=f"at least {CANCELLING_BELOW:g}",
        hint="ask the client for factors as they were trained",
    )
    return rejection(error, adapter.name, adapter.path, adapter.sha256)
