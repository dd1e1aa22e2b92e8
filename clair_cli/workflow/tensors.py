"""The tensors of one module, of all clients: read when they are needed, and let go again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from clair_cli.errors import RejectedClient, is_out_of_memory
from clair_cli.formats.adapter import Adapter
from clair_cli.maths.stack import Factors, FactorStack, stack_factors
from clair_cli.workflow.engine import Device
from clair_cli.workflow.round import Round


class ClientLost(Exception):
    """A client's tensors turned out unreadable in the middle of a pass."""

    def __init__(self, adapter: Adapter, error: RejectedClient) -> None:
        super().__init__(error.message)
        self.adapter = adapter
        self.error = error


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
    try:
        lora_A, lora_B = adapter.factors(module)
    except RejectedClient as error:
        raise ClientLost(adapter, error) from error
    return lora_A, lora_B, entry.scaling


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


def previous_of(round_: Round, module: str) -> Factors:
    return None if round_.previous is None else factors_of(round_.previous, module)


def stack_of(round_: Round, modules: Sequence[str], device: Device) -> FactorStack:
    """The factors of all clients in some modules of one shape."""
    clients = [updates_of(round_, m, previous_of(round_, m)) for m in modules]
    return stacked_on(device, clients, round_.module_shapes[modules[0]])


def stacked_on(
    device: Device, modules: Sequence[Sequence[Factors]], shape: tuple[int, int]
) -> FactorStack:
    """Factors side by side on a device; the arguments as of `stack_factors`."""
    return stack_factors(
        modules, shape, dtype=device.dtype, device=device.name, pinned=device.pinned
    )
