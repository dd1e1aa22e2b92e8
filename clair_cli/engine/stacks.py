"""The tensors of one module, of all clients: read when they are needed, and let go again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.round import Round, losing
from clair_cli.engine.device import Device
from clair_cli.engine.resident import Resident
from clair_cli.errors import is_out_of_memory
from clair_cli.maths.factors.common_terms import less_last
from clair_cli.maths.factors.stack import Factors, FactorStack, stack_factors


@contextlib.contextmanager
def naming_module(module: str) -> Iterator[None]:
    """Let an error for want of memory say which module it was, or the first of its batch."""
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


def updates_of(round_: Round, module: str, previous: Factors) -> list[Factors]:
    """Every client's update in one module: its adapter, less the previous round's if given."""
    updates: list[Factors] = []
    for adapter in round_.adapters:
        factors = factors_of(adapter, module)
        updates.append(factors if factors is None else less(factors, previous))
    return updates


def less(factors: Factors, previous: Factors) -> Factors:
    """`factors - previous` as one product of stacked factors, scaling 1."""
    if previous is None or factors is None:
        return factors
    lora_A = torch.cat([factors[0].double(), previous[0].double()])
    lora_B = torch.cat(
        [factors[1].double() * factors[2], -previous[1].double() * previous[2]], dim=1
    )
    return lora_A, lora_B, 1.0


def summed_of(round_: Round, module: str, clients: Sequence[int]) -> list[Factors]:
    """What a merge sums: some clients' adapters. With a previous adapter P, that and the mean of
    the updates D_k - P are the mean of the D_k: P itself counts only for clients that lack the
    module, whose update is zero, and is then one more."""
    each = [factors_of(round_.adapters[k], module) for k in clients]
    return [*each, previous_of(round_, module)] if adds_previous(round_, module, clients) else each


def adds_previous(round_: Round, module: str, clients: Sequence[int]) -> bool:
    """Whether the previous adapter is one more in what a merge sums."""
    if round_.previous is None or module not in round_.previous.modules:
        return False
    return any(module not in round_.adapters[k].modules for k in clients)


def previous_of(round_: Round, module: str) -> Factors:
    return None if round_.previous is None else factors_of(round_.previous, module)


class Stacks:
    """Clients' factors side by side, on the device.

    Args:
        resident: the clients' files, if they are there already.
    """

    def __init__(self, round_: Round, device: Device, resident: Resident | None = None) -> None:
        self.round, self.device, self.resident = round_, device, resident
        sources = [*round_.adapters, *([round_.previous] if round_.previous else [])]
        # one client's float64 factors decide for all stacks of the round, whoever is in them: Grams
        # of one are kept for another
        self._balanced = any(m.is_double for a in sources for m in a.modules.values())

    def check(self) -> None:
        """See `Resident.check`; what is read again is checked then."""
        if self.resident is not None:
            self.resident.check()

    def of(self, modules: Sequence[str], clients: Sequence[int] | None = None) -> FactorStack:
        """Of some modules of one shape.

        Args:
            clients: those of a merge, in ascending order, as in `summed_of`; every client's update
                if None.
        """
        if self.resident is not None:
            return self.resident.stack(modules, clients)
        if clients is not None:
            return self._laid_out([summed_of(self.round, m, clients) for m in modules], modules)
        each = [[factors_of(adapter, m) for adapter in self.round.adapters] for m in modules]
        before = [previous_of(self.round, m) for m in modules]
        if all(factors is None for factors in before):
            return self._laid_out(each, modules)
        both = [[*own, last] for own, last in zip(each, before, strict=True)]
        present = [[factors is not None for factors in own] for own in each]
        return less_last(self._laid_out(both, modules), torch.tensor(present))

    def _laid_out(self, each: Sequence[Sequence[Factors]], modules: Sequence[str]) -> FactorStack:
        return stack_factors(
            each, self.round.module_shapes[modules[0]],
            dtype=self.device.dtype, device=self.device.name, pinned=self.device.pinned,
            balanced=self._balanced,
        )  # fmt: skip
