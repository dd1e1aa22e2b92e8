"""What runs on the machines of a Ray cluster: work on one item, and reading one client.

A failure of the work travels as a value, so that the caller raises what a local run would.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.shared_tables import SharedTables
from clair_cli.cohort.model import Rejection
from clair_cli.cohort.round import ClientLost, Round
from clair_cli.engine.device import Device, choose_device, warm_up
from clair_cli.engine.factors import RoundFactors
from clair_cli.errors import RejectedClient
from clair_cli.formats.safetensors.reader import SafetensorsFile
from clair_cli.maths.factors.grams import PackedGrams
from clair_cli.maths.factors.stack import Factors
from clair_cli.maths.merge.from_grams import CoreSVD
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.store.address import RemotePath

T = TypeVar("T")

# Rounds that a process keeps: with the merged one, and the one that was judged.
_ROUNDS = 2


@dataclass(frozen=True)
class Lost:
    """A client's files changed, or can't be read on the machine that had to.

    Attributes:
        index: of the adapter in `sources_of`.
        error: why.
    """

    index: int
    error: RejectedClient


@dataclass(frozen=True)
class Raised:
    """Another error of the work, and where it arose."""

    error: Exception
    trace: str


@dataclass(frozen=True)
class Kept:
    """What is kept of one module from one pass for the next; see `RoundFactors`."""

    grams: PackedGrams | None
    core: CoreSVD | None
    cuts: Mapping[Any, WrittenModule] | None
    read: Mapping[int, Factors] | None


def sources_of(round_: Round) -> tuple[Adapter, ...]:
    """All adapters whose factors work on a round may read, in a fixed order."""
    before = () if round_.previous is None else (round_.previous,)
    return (*round_.compared.adapters, *before)


def described(round_: Round) -> Round:
    """A round as it is sent to other machines, once: no more than work needs, with tables that the
    clients share, and absolute paths."""
    tables, made = SharedTables(), dict[int, Adapter]()

    def sent(adapter: Adapter) -> Adapter:
        if id(adapter) not in made:
            made[id(adapter)] = tables.shared(replace(_absolute(adapter), notes=()))
        return made[id(adapter)]

    def maybe(adapter: Adapter | None) -> Adapter | None:
        return None if adapter is None else sent(adapter)

    return replace(
        round_,
        adapters=tuple(sent(adapter) for adapter in round_.adapters),
        previous=maybe(round_.previous), trust_adapter=maybe(round_.trust_adapter),
        rejected=(), warnings=(), output=None,
    )  # fmt: skip


def _absolute(adapter: Adapter) -> Adapter:
    source = adapter.source
    if not isinstance(source, SafetensorsFile):
        return adapter
    path = source.path
    if isinstance(path, Path):
        path = Path(os.path.abspath(path))
    return replace(adapter, source=replace(source, path=path, kept=None))


_rounds: OrderedDict[str, RoundFactors] = OrderedDict()


def _factors(reference: Any, device: Device) -> RoundFactors:
    """The factors of a round that this process may have fetched already."""
    import ray

    key = reference.hex()
    if key not in _rounds:
        while len(_rounds) >= _ROUNDS:
            _rounds.popitem(last=False)
        _rounds[key] = RoundFactors(ray.get(reference), device)
        _expect(_rounds[key].round)
    _rounds.move_to_end(key)
    return _rounds[key]


def _expect(round_: Round) -> None:
    """Tell stores how many files are read from them: the more, the less is fetched of each at
    once."""
    for adapter in sources_of(round_):
        place = getattr(adapter.source, "path", None)
        if isinstance(place, RemotePath):
            place.store.windows.expect(place.parts)


def run_item(
    sent: Sequence[Any],
    device: Device,
    work: Callable[[RoundFactors, T], object],
    item: T,
    modules: Sequence[str],
    *kept: Kept | None,
) -> Any:
    """Do the work on one item.

    Args:
        sent: a reference to the described round, in a list so that Ray does not resolve it: a
            process fetches each round once.
        modules: the item's, where the work keeps something of them for the next pass.
        kept: what the pass before kept of each of these modules.

    Returns:
        The result, `Lost` or `Raised`. Behind it, where there are `modules`, what is kept of each;
        nothing of a GPU's.
    """
    import torch

    torch.set_num_threads(1)
    warm_up(device)
    factors, outcome = _factors(sent[0], device), None
    factors.grams = {m: k.grams for m, k in zip(modules, kept, strict=True) if k and k.grams}
    factors.cores = {m: k.core for m, k in zip(modules, kept, strict=True) if k and k.core}
    factors.cuts = {m: k.cuts for m, k in zip(modules, kept, strict=True) if k and k.cuts}
    factors.read = {m: k.read for m, k in zip(modules, kept, strict=True) if k and k.read}
    try:
        with device.stream():
            outcome = work(factors, item)
            device.wait()
    except ClientLost as lost:
        numbers = {id(adapter): n for n, adapter in enumerate(sources_of(factors.round))}
        outcome = Lost(numbers[id(lost.adapter)], lost.error)
    except Exception as error:
        outcome = Raised(error, traceback.format_exc())
    if not modules:
        return outcome
    if device.name != "cpu":
        factors.grams, factors.cores = {}, {}
    made: list[dict[str, Any]] = [factors.grams, factors.cores, factors.cuts, factors.read]
    return (outcome, *(Kept(*(by_module.get(m) for by_module in made)) for m in modules))


def read_item(load: Callable[[T], Adapter | Rejection], folder: str, item: T) -> Any:
    """Read and check one client, as seen from a folder: its paths are as the user gave them.

    Returns:
        The adapter, whose tables can be sent, or the rejection; or `Raised`.
    """
    try:
        with contextlib.suppress(OSError):  # where it is not there, paths are absolute
            os.chdir(folder)
        found = load(item)
        return SharedTables().shared(found) if isinstance(found, Adapter) else found
    except Exception as error:
        return Raised(error, traceback.format_exc())


def gpu_memory() -> int:
    """Memory in bytes of the GPU that this process has a share of."""
    return choose_device("cuda").memory
