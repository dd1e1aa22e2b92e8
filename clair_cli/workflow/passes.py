"""Passes over the modules: read the tensors in hand, reduce them, let them go.

Nothing holds all clients times all modules. A module's work is a pure function of its tensors
(maths), so a batch may later run in a thread, on a GPU or on another machine unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.errors import RejectedClient, UsageError, is_out_of_memory
from clair_cli.formats.adapter import Adapter
from clair_cli.maths.evidence import Evidence, concatenate, gather, unit_core
from clair_cli.maths.judge import joint_stack
from clair_cli.maths.stack import Factors, FactorStack, stack_factors
from clair_cli.workflow.round import Round

# Bytes of stacked float64 factors and Grams that one batch of modules may take.
BATCH_BYTES = 128 * 2**20

Tell = Callable[[str, int, int], None]


class ClientLost(Exception):
    """A client's tensors turned out unreadable in the middle of a pass."""

    def __init__(self, adapter: Adapter, error: RejectedClient) -> None:
        super().__init__(error.message)
        self.adapter = adapter
        self.error = error


@dataclass(frozen=True)
class Device:
    """Where the products run, and how exactly."""

    name: str
    dtype: torch.dtype


def choose_device(wanted: str) -> Device:
    """`auto` takes a CUDA device if there is one; float64 wherever the device has it.

    Raises:
        UsageError: the device asked for is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device here", hint="use --device auto")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: no MPS device here", hint="use --device auto")
    return Device(wanted, torch.float32 if wanted == "mps" else torch.float64)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Products and factorisations differ in the last bits between thread counts: fix it to one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def batches(round_: Round) -> Iterator[list[str]]:
    """Modules grouped by shape, in batches that fit the memory bound."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for module, shape in round_.module_shapes.items():
        by_shape.setdefault(shape, []).append(module)
    for shape, modules in sorted(by_shape.items()):
        ranks = sum(_largest_ranks(round_, modules))
        per_module = 8 * ranks * (sum(shape) + 4 * ranks)
        size = max(1, BATCH_BYTES // max(1, per_module))
        for start in range(0, len(modules), size):
            yield modules[start : start + size]


def _largest_ranks(round_: Round, modules: Sequence[str]) -> list[int]:
    """Columns each client needs in a batch of these modules."""
    before = round_.previous
    columns = []
    for adapter in round_.adapters:
        ranks = [
            adapter.modules[m].rank
            + (before.modules[m].rank if before is not None and m in before.modules else 0)
            for m in modules
            if m in adapter.modules
        ]
        columns.append(max(ranks, default=0))
    return columns


def _stacks(round_: Round, device: Device, tell: Tell, stage: str) -> Iterator[
    tuple[list[str], FactorStack]
]:  # fmt: skip
    done, total = 0, len(round_.module_shapes)
    for modules in batches(round_):
        shape = round_.module_shapes[modules[0]]
        with naming_module(modules[0]):
            clients = [updates_of(round_, m, previous_of(round_, m)) for m in modules]
            stack = stack_factors(clients, shape, dtype=device.dtype, device=device.name)
        yield modules, stack
        done += len(modules)
        tell(stage, done, total)


def gather_evidence(round_: Round, device: Device, tell: Tell) -> Evidence:
    """First pass: norms, pairwise numbers and small cores of every module, in order of name."""
    names: list[str] = []
    parts: list[Evidence] = []
    for modules, stack in _stacks(round_, device, tell, "comparing"):
        names += modules
        with naming_module(modules[0]):
            parts.append(gather(stack))
    return concatenate(parts, sorted(range(len(names)), key=names.__getitem__))


def gather_cores(
    round_: Round, side: str, device: Device, tell: Tell
) -> tuple[Tensor, tuple[int, ...]]:
    """A further pass where sharing shows in one side only: that side's joint cores and ranks."""
    names: list[str] = []
    cores: list[Tensor] = []
    ranks = tuple(_largest_ranks(round_, list(round_.module_shapes)))
    for modules, stack in _stacks(round_, device, tell, "decomposing"):
        names += modules
        with naming_module(modules[0]):
            found = torch.split(unit_core(stack, side), 1)
        cores += [_padded(core, stack.ranks, ranks) for core in found]
    order = sorted(range(len(names)), key=names.__getitem__)
    return joint_stack([cores[i] for i in order]), ranks


def _padded(core: Tensor, ranks: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Widen every client's columns with zeros to the wanted number."""
    parts = torch.split(core, list(ranks), dim=-1)
    return torch.cat(
        [
            torch.nn.functional.pad(p, (0, w - p.shape[-1]))
            for p, w in zip(parts, wanted, strict=True)
        ],
        dim=-1,
    )
