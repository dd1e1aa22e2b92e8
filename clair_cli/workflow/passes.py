"""Passes over the modules: read the tensors in hand, reduce them, let them go.

Nothing holds all clients times all modules. A module's work is a pure function of its tensors
(maths): modules run side by side on threads, and in batches of one shape on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clair_cli.maths.evidence import Evidence, concatenate, gather, unit_core
from clair_cli.maths.grams import Grams, grams
from clair_cli.maths.judge import joint_stack
from clair_cli.maths.stack import FactorStack
from clair_cli.maths.wide_evidence import is_wide, wide_evidence
from clair_cli.workflow.engine import Engine
from clair_cli.workflow.round import Round
from clair_cli.workflow.tensors import naming_module, stack_of

# Bytes of stacked float64 factors and Grams that one batch of modules may take on a GPU.
BATCH_BYTES = 512 * 2**20
# Bytes of Grams that may be kept from the first pass for the second; others are made again.
KEPT_BYTES = 256 * 2**20
# Bytes of factors that may be kept so; the other modules' are read again.
KEPT_FACTOR_BYTES = 192 * 2**20


@dataclass(frozen=True)
class Kept:
    """What is kept from the first pass for the second, by module; one module each.

    Attributes:
        grams: of the first modules, as many as fit.
        stacks: the factors of the first modules, as many as fit; they are the bytes that were
            judged.
    """

    grams: dict[str, Grams] = field(default_factory=dict)
    stacks: dict[str, FactorStack] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """What the first pass leaves. `evidence`: of all modules, in order of name."""

    evidence: Evidence
    kept: Kept


def batches(round_: Round, device: str) -> Iterator[list[str]]:
    """Modules one by one on a CPU; on a GPU, those of one shape in batches that fit the bound, and
    one by one where there are more terms than the layer is wide."""
    if device == "cpu":
        yield from ([module] for module in round_.module_shapes)
        return
    by_shape: dict[tuple[int, int], list[str]] = {}
    for module, shape in round_.module_shapes.items():
        if wide(round_, module):
            yield [module]
        else:
            by_shape.setdefault(shape, []).append(module)
    for shape, modules in sorted(by_shape.items()):
        ranks = sum(largest_ranks(round_, modules))
        per_module = 8 * ranks * (sum(shape) + 4 * ranks)
        size = max(1, BATCH_BYTES // max(1, per_module))
        for start in range(0, len(modules), size):
            yield modules[start : start + size]


def largest_ranks(round_: Round, modules: Sequence[str]) -> list[int]:
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


def wide(round_: Round, module: str) -> bool:
    """Whether there are more rank-one terms than the layer is wide, and no Grams are made."""
    return is_wide(sum(largest_ranks(round_, [module])), round_.module_shapes[module])


def kept_grams(round_: Round) -> dict[str, int]:
    """The modules whose Grams are kept, and their bytes."""
    made = (m for m in round_.module_shapes if not wide(round_, m))
    return _fitting({m: 16 * sum(largest_ranks(round_, [m])) ** 2 for m in made}, KEPT_BYTES)


def kept_stacks(round_: Round, engine: Engine) -> dict[str, int]:
    """The modules whose factors are kept for a merge, and their bytes. On a CPU only, where a
    stack holds nothing but what the files do; not with a previous adapter, which doubles them, nor
    where nobody could tell that a client changed."""
    if not engine.merges or engine.device.name != "cpu" or round_.previous is not None:
        return {}
    if not all(adapter.source.looks_unchanged() for adapter in round_.adapters):
        return {}
    sizes: dict[str, int] = {}
    for module, shape in round_.module_shapes.items():
        if not wide(round_, module):
            having = (a.modules[module] for a in round_.adapters if module in a.modules)
            dtypes = {m.dtype for m in having}
            wider = len(dtypes) > 1 or "float32" in dtypes
            element = 8 if "float64" in dtypes else 4 if wider else 2
            sizes[module] = element * sum(shape) * sum(largest_ranks(round_, [module]))
    return _fitting(sizes, KEPT_FACTOR_BYTES)


def _fitting(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """The first of those that fit together."""
    found: dict[str, int] = {}
    for name, size in sizes.items():
        if size <= room:
            found[name] = size
            room -= size
    return found


def gather_evidence(round_: Round, engine: Engine) -> Gathered:
    """First pass: norms, pairwise numbers and small cores of every module, in order of name."""
    keep, keep_stacks = kept_grams(round_), kept_stacks(round_, engine)

    def work(modules: list[str]) -> tuple[list[str], Evidence, Kept]:
        with naming_module(modules[0]):
            stack = stack_of(round_, modules, engine.device)
            if wide(round_, modules[0]):
                return modules, wide_evidence(stack).evidence, Kept()
            pair = grams(stack)
            kept = {m: pair.module(i) for i, m in enumerate(modules) if m in keep}
            stacks = {m: stack for m in modules if m in keep_stacks}
            return modules, gather(pair), Kept(kept, stacks)

    names: list[str] = []
    parts: list[Evidence] = []
    held = Kept()
    for modules, part, kept in engine.each("comparing", work, batches(round_, engine.device.name)):
        names += modules
        parts.append(part)
        held.grams.update(kept.grams)
        held.stacks.update(kept.stacks)
    evidence = concatenate(parts, sorted(range(len(names)), key=names.__getitem__))
    return Gathered(evidence, held)


def gather_cores(
    round_: Round, side: str, engine: Engine, held: Mapping[str, Grams]
) -> tuple[Tensor, tuple[int, ...]]:
    """Where sharing shows in one side only: that side's joint cores and ranks."""
    ranks = tuple(largest_ranks(round_, list(round_.module_shapes)))

    def work(modules: list[str]) -> tuple[list[str], list[Tensor]]:
        with naming_module(modules[0]):
            kept = [held[m] for m in modules if m in held]
            if len(kept) == len(modules):
                return modules, [_padded(unit_core(g, side), g.ranks, ranks) for g in kept]
            stack = stack_of(round_, modules, engine.device)
            if wide(round_, modules[0]):
                found = wide_evidence(stack).core(side)
            else:
                found = unit_core(grams(stack), side)
            return modules, [_padded(core, stack.ranks, ranks) for core in torch.split(found, 1)]

    names: list[str] = []
    cores: list[Tensor] = []
    for modules, found in engine.each("decomposing", work, batches(round_, engine.device.name)):
        names += modules
        cores += found
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
