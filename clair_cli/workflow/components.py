"""Clients whose components cancel: what is measured of them would not be what is merged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clair_cli.cohort.model import Rejection, rejection
from clair_cli.cohort.round import ClientsUnfit, Round
from clair_cli.engine.stacks import stored_factors_of
from clair_cli.errors import RejectedClient, UsageError
from clair_cli.maths.evidence.own_sizes import LEAST_SHARE, OwnSizes, size_alone
from clair_cli.maths.factors.grams import LEAST_NORM, VANISHING
from clair_cli.maths.factors.lowrank import tail_norm
from clair_cli.text import quoted

if TYPE_CHECKING:
    from clair_cli.workflow.judge import Judged

# By how much of itself a merged norm may be above the clients': of rounding in its singular values.
TOLERANCE = 1e-6


def check_overcomplete(round_: Round) -> None:
    """The same as `check_components` for modules whose rank is above their width: their factors
    are multiplied when they are read, so that what cancels in them is not seen afterwards.

    Raises:
        ClientsUnfit, UsageError: as `check_components`.
        ClientLost: a tensor changed since it was checked.
    """
    found: dict[int, Rejection] = {}
    adapters = [*enumerate(round_.adapters)]
    if round_.previous is not None:
        adapters.append((-1, round_.previous))
    for k, adapter in adapters:
        for name, module in adapter.modules.items():
            if k in found or module.components == module.rank or name not in round_.module_shapes:
                continue
            norm, components = size_alone(*stored_factors_of(adapter, name), module.scaling)
            if norm < LEAST_SHARE * components:
                found[k] = _refused(round_, k, name, norm / components)
    if found:
        raise ClientsUnfit(list(found.values()))


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
        if k not in found:
            found[k] = _refused(round_, k, modules[m], sizes.share(m, k))
    if found:
        raise ClientsUnfit(list(found.values()))


def _refused(round_: Round, k: int, module: str, share: float) -> Rejection:
    """One client's rejection; of the previous adapter, which is client -1, a `UsageError`."""
    text = (
        f"its rank-one components cancel: together they are {share:.1e} of their size, expected at "
        f"least {LEAST_SHARE:g}"
    )
    if k < 0:
        raise UsageError(f"--previous: module {quoted(module)}: {text}")
    adapter = round_.adapters[k]
    error = RejectedClient(
        text,
        module=module,
        found=f"{share:.1e} of the components' size",
        expected=f"at least {LEAST_SHARE:g}",
        hint="ask the client for factors as they were trained",
    )
    return rejection(error, adapter.name, adapter.path, adapter.sha256)


def largest_sums(judged: Judged) -> dict[str, float]:
    """Largest norm that the merged delta weight can have in each module: the weighted sum of the
    norms that its clients were judged by, and what rounding may have taken from these."""
    sizes, summed = judged.sizes, judged.summed
    assert sizes is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        found[m] = math.fsum(
            judged.weights[k] * (norms[k] if m in summed.adapters[k].modules else before)
            for k in judged.merged
        )
    return found


def largest_refined(judged: Judged) -> dict[str, list[float]]:
    """Largest norms that the refined delta weights of the clients with a weight can have in each
    module: projections of the client's own and of the mean, which are orthogonal to each other, on
    top of the previous adapter's."""
    sizes, summed, evidence = judged.sizes, judged.summed, judged.evidence
    assert sizes is not None and evidence is not None
    found = {}
    for i, m in enumerate(summed.module_shapes):
        norms, before = sizes.most(i, summed.module_ranks[m]), float(sizes.previous_norms[i])
        if summed.previous is not None:  # norms of differences, and what rounding takes from them
            lost = VANISHING[torch.float64] * sizes.components[i].add(before)
            norms = (evidence.norms[i] + lost).tolist()
        mean = math.fsum(judged.weights[k] * norms[k] for k in judged.merged)
        found[m] = [math.hypot(norms[k], mean) + before for k in judged.merged]
    return found


def check_sum(module: str, values: Tensor, most: float) -> None:
    """Make sure that nothing that is written sums to more than was judged.

    Args:
        values: singular values of what will be written.
        most: the largest norm that it can have.

    Raises:
        ArithmeticError: it is larger: a fault of this program.
    """
    norm = tail_norm(values, 0)
    if not norm <= most * (1.0 + TOLERANCE) + LEAST_NORM:
        raise ArithmeticError(
            f"module {module!r}: the result's norm is {norm:.9g}, and at most {most:.9g} was judged"
        )
