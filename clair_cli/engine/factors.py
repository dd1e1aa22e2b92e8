"""The clients' factors, module by module: read when they are needed, and not kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.round import Round, losing
from clair_cli.engine.device import Device
from clair_cli.engine.device_cache import DeviceCache
from clair_cli.errors import is_out_of_memory
from clair_cli.maths.factors.common_components import differences_to_last
from clair_cli.maths.factors.grams import PackedGrams
from clair_cli.maths.factors.stack import Factors, FactorStack, stack_factors
from clair_cli.maths.merge.from_grams import CoreSVD
from clair_cli.maths.merge.rounding import WrittenModule


@contextlib.contextmanager
def naming_module(module: str) -> Iterator[None]:
    """Put a module's name, the first of its batch, into the error for too little memory.

    Raises:
        MemoryError: the work inside ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"module {module!r}") from error
        raise


def factors_of(adapter: Adapter, module: str) -> Factors:
    """One client's (lora_A, lora_B, scaling) in one module; None if it lacks the module.

    Raises:
        ClientLost: the tensors changed since they were checked.
    """
    entry = adapter.modules.get(module)
    if entry is None:
        return None
    with losing(adapter):
        lora_A, lora_B = adapter.factors(module)
    return lora_A, lora_B, entry.scaling


def stored_factors_of(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    """(lora_A, lora_B) of one module as stored, see `Adapter.stored_factors`; the adapter must have
    the module.

    Raises:
        ClientLost: the tensors changed since they were checked.
    """
    with losing(adapter):
        return adapter.stored_factors(module)


def difference(factors: Factors, previous: Factors) -> Factors:
    """`factors - previous` as one product of stacked factors, scaling 1."""
    if previous is None or factors is None:
        return factors
    lora_A = torch.cat([factors[0].double(), previous[0].double()])
    lora_B = torch.cat(
        [factors[1].double() * factors[2], -previous[1].double() * previous[2]], dim=1
    )
    return lora_A, lora_B, 1.0


def summed_weights(
    round_: Round, module: str, clients: Sequence[int], weights: Sequence[float]
) -> list[float]:
    """Weights of the entries of `RoundFactors.summed`. The previous adapter's is the sum of the
    weights of all clients that lack the module; an initial one's is less the sum of all others'.

    Args:
        weights: one per client in `clients`.
    """
    if not adds_previous(round_, module, clients):
        return list(weights)
    having = [module in round_.adapters[k].modules for k in clients]
    each = list(zip(weights, having, strict=True))
    if round_.initial:
        return [*weights, -math.fsum(w for w, has in each if has)]
    return [*weights, math.fsum(w for w, has in each if not has)]


def adds_previous(round_: Round, module: str, clients: Sequence[int]) -> bool:
    """Whether the previous adapter is one more entry of `RoundFactors.summed`."""
    if round_.previous is None or module not in round_.previous.modules:
        return False
    return any((module in round_.adapters[k].modules) == round_.initial for k in clients)


def previous_of(round_: Round, module: str) -> Factors:
    """The previous adapter's factors in one module; None without such an adapter or module."""
    return None if round_.previous is None else factors_of(round_.previous, module)


# Index of the previous adapter in `RoundFactors.read`, beside those of the clients.
_PREVIOUS = -1


class RoundFactors:
    """The factors of a round's clients, side by side on the device; and results that one pass over
    the modules keeps for the next.

    Attributes:
        round: the clients.
        device: where stacks are made.
        cache: the clients' files in the device's memory; None if they are read for each stack.
        grams: Grams of some modules' compared delta weights, by module.
        cores: decompositions of some modules' weighted sums, by module.
        cuts: some modules' weighted sums as they may be written, by module and by the way to cut.
        read: factors of some modules as they were read, by module and by the index in the round.
    """

    def __init__(self, round_: Round, device: Device, cache: DeviceCache | None = None) -> None:
        self.round, self.device, self.cache = round_, device, cache
        self.grams: dict[str, PackedGrams] = {}
        self.cores: dict[str, CoreSVD] = {}
        self.cuts: dict[str, Mapping[Any, WrittenModule]] = {}
        self.read: dict[str, Mapping[int, Factors]] = {}
        sources = [*round_.compared.adapters, *([round_.previous] if round_.previous else [])]
        # if one client has float64 factors, all stacks of the round are balanced, whichever clients
        # are in them: Grams of one stack are used with another
        self._balanced = any(m.is_double for a in sources for m in a.modules.values())

    def of(self, round_: Round) -> RoundFactors:
        """The factors of a round with the same files. If its clients or modules differ from this
        round's, they are without cache, and of what is kept `read` alone counts."""
        if round_ is self.round:
            return self
        found = RoundFactors(round_, self.device)
        found.read = self.read
        return found

    def forget(self) -> None:
        """Drop what is kept."""
        for kept in (self.grams, self.cores, self.cuts, self.read):
            kept.clear()

    def check(self) -> None:
        """Check that no cached file has changed, see `DeviceCache.check`; other files are checked
        whenever they are read."""
        if self.cache is not None:
            self.cache.check()

    def stack(self, modules: Sequence[str], clients: Sequence[int] | None = None) -> FactorStack:
        """The factors of some modules of one shape, side by side.

        Args:
            modules: names of modules of one shape.
            clients: of a merge, ascending: the entries of `summed`. None for all clients and the
                user's own adapter, as in `Round.compared`, whose delta weights are then less the
                previous adapter's.

        Raises:
            ClientLost: a tensor changed since it was checked.
        """
        if self.cache is not None:
            return self.cache.stack(modules, clients)
        if clients is not None:
            return self._stacked([self.summed(m, clients) for m in modules], modules)
        each = [
            [factors_of(adapter, m) for adapter in self.round.compared.adapters] for m in modules
        ]
        before = [previous_of(self.round, m) for m in modules]
        if all(factors is None for factors in before):
            return self._stacked(each, modules)
        both = [[*own, last] for own, last in zip(each, before, strict=True)]
        present = [[factors is not None for factors in own] for own in each]
        return differences_to_last(self._stacked(both, modules), torch.tensor(present))

    def summed(self, module: str, clients: Sequence[int]) -> list[Factors]:
        """The factors whose weighted sum is the merge of some clients in one module.

        With a previous adapter P the merge is P plus the mean of the differences D_k - P, so it is
        the mean of the D_k, with P in place of D_k for clients that lack the module (their
        difference is zero). P is then one more entry at the end. An initial adapter is not added:
        it is subtracted from the clients that have the module, as an entry of negative weight.

        Args:
            clients: indices in the round, ascending.
        """
        each = [self.client(k, module) for k in clients]
        if adds_previous(self.round, module, clients):
            each.append(self.previous(module))
        return each

    def differences(self, module: str, clients: Sequence[int]) -> list[Factors]:
        """Some clients' delta weights in one module less that of the previous adapter; None for a
        client that lacks the module.

        Args:
            clients: indices in the round.
        """
        before = self.previous(module)
        return [difference(self.client(k, module), before) for k in clients]

    def client(self, index: int, module: str) -> Factors:
        """A client's factors in one module, see `factors_of`; as they were kept, if they were."""
        adapter = self.round.adapters[index]
        if module not in adapter.modules:
            return None
        return self.read.get(module, {}).get(index) or factors_of(adapter, module)

    def previous(self, module: str) -> Factors:
        """The previous adapter's, likewise; None without such an adapter or module."""
        return self.read.get(module, {}).get(_PREVIOUS) or previous_of(self.round, module)

    def keep_read(self, module: str, clients: Sequence[int], room: int) -> None:
        """Read some clients' and the previous adapter's factors in one module for this pass and the
        next ones, unless they may take more than `room` bytes.

        Args:
            clients: indices in the round.
        """
        sources = [self.round.adapters[k] for k in clients]
        sources += [self.round.previous] if self.round.previous else []
        size = sum(a.modules[module].factor_bytes for a in sources if module in a.modules)
        if 0 < size <= room:
            found = {k: self.client(k, module) for k in clients}
            self.read[module] = {**found, _PREVIOUS: self.previous(module)}

    def forget_read(self, modules: Sequence[str]) -> None:
        """Drop what `keep_read` kept of some modules."""
        for module in modules:
            self.read.pop(module, None)

    def _stacked(self, each: Sequence[Sequence[Factors]], modules: Sequence[str]) -> FactorStack:
        return stack_factors(
            each, self.round.module_shapes[modules[0]],
            dtype=self.device.dtype, device=self.device.name, pinned=self.device.pinned,
            balanced=self._balanced,
        )  # fmt: skip
