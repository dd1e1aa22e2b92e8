"""The clients' factors in one module: read when they are needed, and let go again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

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


@contextlib.contextmanager
def naming_module(module: str) -> Iterator[None]:
    """Name the module, or the first of its batch, in an error for want of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"module {module!r}") from error
        raise


def factors_of(adapter: Adapter, module: str) -> Factors:
    """One client's pair in one module, or None where it has none."""
    entry = adapter.modules.get(module)
    if entry is None:
        return None
    with losing(adapter):
        lora_A, lora_B = adapter.factors(module)
    return lora_A, lora_B, entry.scaling


def stored_factors_of(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    """See `Adapter.stored_factors`; an adapter without such a module is a mistake."""
    with losing(adapter):
        return adapter.stored_factors(module)


def differences_of(round_: Round, module: str, previous: Factors) -> list[Factors]:
    """Every client's delta weight in one module less the previous adapter's, if there is one; None
    where a client has no such module."""
    differences: list[Factors] = []
    for adapter in round_.adapters:
        factors = factors_of(adapter, module)
        differences.append(factors if factors is None else difference(factors, previous))
    return differences


def difference(factors: Factors, previous: Factors) -> Factors:
    """`factors - previous` as one product of stacked factors, scaling 1."""
    if previous is None or factors is None:
        return factors
    lora_A = torch.cat([factors[0].double(), previous[0].double()])
    lora_B = torch.cat(
        [factors[1].double() * factors[2], -previous[1].double() * previous[2]], dim=1
    )
    return lora_A, lora_B, 1.0


def summed_of(round_: Round, module: str, clients: Sequence[int]) -> list[Factors]:
    """The factors that a merge of some clients sums. With a previous adapter P, the result is P and
    the mean of the differences D_k - P, which is the mean of the D_k: P itself counts only for
    clients that lack the module (their difference is zero), and is then one more entry."""
    each = [factors_of(round_.adapters[k], module) for k in clients]
    return [*each, previous_of(round_, module)] if adds_previous(round_, module, clients) else each


def summed_weights(
    round_: Round, module: str, clients: Sequence[int], weights: Sequence[float]
) -> list[float]:
    """Weights of the entries of `summed_of`: the previous adapter has those of all clients that
    lack the module.

    Args:
        weights: one per client in `clients`.
    """
    if not adds_previous(round_, module, clients):
        return list(weights)
    having = [module in round_.adapters[k].modules for k in clients]
    lacking = (w for w, has in zip(weights, having, strict=True) if not has)
    return [*weights, math.fsum(lacking)]


def adds_previous(round_: Round, module: str, clients: Sequence[int]) -> bool:
    """Whether the previous adapter is one more entry in a merge's sum."""
    if round_.previous is None or module not in round_.previous.modules:
        return False
    return any(module not in round_.adapters[k].modules for k in clients)


def previous_of(round_: Round, module: str) -> Factors:
    return None if round_.previous is None else factors_of(round_.previous, module)


class RoundFactors:
    """The factors of a round's clients, side by side on the device, and results that one pass over
    the modules keeps for the next.

    Attributes:
        cache: the clients' files in the device's memory, if they are there.
        grams: Grams of some modules' compared delta weights, by module.
        cores: decompositions of some modules' weighted sums, by module.
    """

    def __init__(self, round_: Round, device: Device, cache: DeviceCache | None = None) -> None:
        self.round, self.device, self.cache = round_, device, cache
        self.grams: dict[str, PackedGrams] = {}
        self.cores: dict[str, CoreSVD] = {}
        sources = [*round_.adapters, *([round_.previous] if round_.previous else [])]
        # one client's float64 factors decide for all stacks of the round, whoever is in them: Grams
        # of one are kept for another
        self._balanced = any(m.is_double for a in sources for m in a.modules.values())

    def of(self, round_: Round) -> RoundFactors:
        """Those of the same clients with other modules; with nothing kept if they differ."""
        return self if round_ is self.round else RoundFactors(round_, self.device)

    def check(self) -> None:
        """See `DeviceCache.check`; factors that are read again are checked on the way."""
        if self.cache is not None:
            self.cache.check()

    def stack(self, modules: Sequence[str], clients: Sequence[int] | None = None) -> FactorStack:
        """The factors of some modules of one shape.

        Args:
            clients: those of a merge, in ascending order, as in `summed_of`; all clients' delta
                weights less the previous adapter's if None.
        """
        if self.cache is not None:
            return self.cache.stack(modules, clients)
        if clients is not None:
            return self._stacked([summed_of(self.round, m, clients) for m in modules], modules)
        each = [[factors_of(adapter, m) for adapter in self.round.adapters] for m in modules]
        before = [previous_of(self.round, m) for m in modules]
        if all(factors is None for factors in before):
            return self._stacked(each, modules)
        both = [[*own, last] for own, last in zip(each, before, strict=True)]
        present = [[factors is not None for factors in own] for own in each]
        return differences_to_last(self._stacked(both, modules), torch.tensor(present))

    def _stacked(self, each: Sequence[Sequence[Factors]], modules: Sequence[str]) -> FactorStack:
        return stack_factors(
            each, self.round.module_shapes[modules[0]],
            dtype=self.device.dtype, device=self.device.name, pinned=self.device.pinned,
            balanced=self._balanced,
        )  # fmt: skip
