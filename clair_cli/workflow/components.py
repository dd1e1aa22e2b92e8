"""Clients whose components cancel: what is measured of them would not be what is merged."""

from __future__ import annotations

import torch

from clair_cli.errors import RejectedClient, UsageError
from clair_cli.formats.cohort import Rejection, rejection
from clair_cli.formats.strict_json import quoted
from clair_cli.maths.own_sizes import LEAST_SHARE, OwnSizes
from clair_cli.workflow.round import ClientsUnfit, Round


def check_components(round_: Round, sizes: OwnSizes, dtype: torch.dtype) -> None:
    """Refuse delta weights far smaller than the rank-one components that they are the sum of.

    Args:
        sizes: of the round's modules and clients, in their order.
        dtype: of the products that `sizes` come from.

    Raises:
        ClientsUnfit: with all clients that have such a module.
        UsageError: the previous adapter has one.
    """
    modules, found = list(round_.module_shapes), dict[int, Rejection]()
    for m, k in sizes.cancelling(dtype):
        share = sizes.share(m, k)
        text = (
            f"its rank-one components cancel: together they are {share:.1e} of their size, "
            f"expected at least {LEAST_SHARE:g}"
        )
        if k < 0:
            raise UsageError(f"--previous: module {quoted(modules[m])}: {text}")
        adapter = round_.adapters[k]
        error = RejectedClient(
            text,
            module=modules[m],
            found=f"{share:.1e} of the components' size",
            expected=f"at least {LEAST_SHARE:g}",
            hint="ask the client for factors as they were trained",
        )
        found.setdefault(k, rejection(error, adapter.name, adapter.path, adapter.sha256))
    if found:
        raise ClientsUnfit(list(found.values()))
