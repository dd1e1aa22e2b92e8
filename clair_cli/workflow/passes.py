"""Passes over the modules: read the tensors in hand, reduce them, let them go.

Nothing holds all clients times all modules. A module's work is a pure function of its tensors
(maths): modules go in batches of one shape, a few on a CPU and many on a GPU, and batches run side
by side on threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clair_cli.cohort.round import Round
from clair_cli.engine.device import Device, Engine
from clair_cli.engine.resident import make_resident
from clair_cli.engine.stacks import Stacks, naming_module, previous_of
from clair_cli.maths.evidence.gather import Evidence, concatenate, gather
from clair_cli.maths.evidence.own_sizes import OwnSizes, concatenate_sizes, own_sizes, size_alone
from clair_cli.maths.evidence.side_cores import SideCores, joint_cores, side_cores
from clair_cli.maths.evidence.wide import is_wide, wide_evidence
from clair_cli.maths.factors.grams import PackedGrams, grams, packed, packed_bytes

# Bytes of stacked float64 factors and Grams that one batch of modules may take on a CPU; the share
# of a GPU's memory for it, up to a bound.
CPU_BATCH_BYTES = 96 * 2**20
_BATCH_SHARE, _MOST_BATCH_BYTES = 1 / 64, 2 * 2**30
# Modules of a batch on a CPU: then what Python does between its products no longer counts, and
# there is still a batch for every thread.
CPU_BATCH = 4
# Bytes of Grams that may be kept from the first pass for the second; others are made again.
KEPT_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Gathered:
    """What the first pass leaves.

    Attributes:
        evidence: of all modules, in order of name.
        sizes: of the clients' own delta weights, likewise.
        kept: the Grams of as many modules as fit, by module; one module each.
        stacks: where their factors come from.
    """

    evidence: Evidence
    sizes: OwnSizes
    kept: dict[str, PackedGrams]
    stacks: Stacks


def batches(round_: Round, device: Device) -> list[list[str]]:
    """Modules in which every client has one rank, and one shape, in batches that fit the bounds; on
    a GPU the ranks may differ, but not that of a previous adapter: in a batch everybody's own terms
    lie beside its terms. One by one where there are more terms than the layer is wide.

    The largest come first, so that no thread begins one when the others are nearly done.
    """
    alike: dict[tuple[tuple[int, int], int, tuple[int, ...]], list[str]] = {}
    sized: list[tuple[int, list[str]]] = []
    for module, shape in round_.module_shapes.items():
        ranks = largest_ranks(round_, [module])
        if wide(round_, module):
            sized.append((sum(ranks) * sum(shape), [module]))
        else:
            before = round_.previous_rank(module)
            key = (shape, before, tuple(ranks) if device.name == "cpu" else ())
            alike.setdefault(key, []).append(module)
    for (shape, _, _), modules in alike.items():
        n_terms, widths = sum(largest_ranks(round_, modules)), sum(shape)
        size = _batch_size(n_terms, widths, device)
        for start in range(0, len(modules), size):
            batch = modules[start : start + size]
            sized.append((n_terms * widths * len(batch), batch))
    sized.sort(key=lambda pair: (-pair[0], pair[1]))
    return [batch for _, batch in sized]


def _batch_size(n_terms: int, widths: int, device: Device) -> int:
    """Modules in a batch: of so many rank-one terms, and with so many rows and columns."""
    each = 8 * max(1, n_terms * (widths + 4 * n_terms))
    if device.name == "cpu":
        return max(1, min(CPU_BATCH, CPU_BATCH_BYTES // each))
    return max(1, min(_MOST_BATCH_BYTES, int(device.memory * _BATCH_SHARE)) // each)


def largest_ranks(round_: Round, modules: Sequence[str]) -> list[int]:
    """Columns each client needs in a batch of these modules."""
    return [max(ranks) for ranks in zip(*(round_.module_ranks[m] for m in modules), strict=True)]


def wide(round_: Round, module: str) -> bool:
    """Whether there are more rank-one terms than the layer is wide, and no Grams are made."""
    return is_wide(sum(largest_ranks(round_, [module])), round_.module_shapes[module])


def kept_grams(round_: Round) -> dict[str, int]:
    """The modules whose Grams are kept, and their bytes."""
    made = [m for m in round_.module_shapes if not wide(round_, m)]
    made.sort(key=lambda m: (-sum(round_.module_shapes[m]), m))  # what takes the longest to make
    sizes = {m: packed_bytes(sum(largest_ranks(round_, [m]))) for m in made}
    return _fitting(sizes, KEPT_BYTES)


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
    stacks = Stacks(round_, engine.device, make_resident(round_, engine))
    # what lies there already is multiplied again sooner than it is kept; with a previous adapter
    # what is compared is not what is merged
    keep = kept_grams(round_) if stacks.resident is None and round_.previous is None else {}

    def work(modules: list[str]) -> tuple[list[str], Evidence, OwnSizes, dict[str, PackedGrams]]:
        with naming_module(modules[0]):
            stack = stacks.of(modules)
            if wide(round_, modules[0]):
                found = wide_evidence(stack)
                return modules, found.evidence, found.sizes, {}
            pair = grams(stack)
            sizes = own_sizes(pair, round_.previous_rank(modules[0]))
            # not those with zeros for what a client has not: the merge lays out what there is
            whole = [m in keep and tuple(round_.module_ranks[m]) == pair.ranks for m in modules]
            kept = {m: packed(pair.module(i)) for i, m in enumerate(modules) if whole[i]}
            return modules, gather(pair), sizes, kept

    names: list[str] = []
    parts: list[tuple[Evidence, OwnSizes]] = []
    held: dict[str, PackedGrams] = {}
    each = engine.each if stacks.resident is None else engine.each_there
    for modules, part, sizes, kept in each("comparing", work, batches(round_, engine.device)):
        names += modules
        parts.append((part, sizes))
        held.update(kept)
    order = sorted(range(len(names)), key=names.__getitem__)
    evidence = concatenate([part for part, _ in parts], order)
    sizes = concatenate_sizes([sizes for _, sizes in parts], order)
    for i, m in enumerate(sorted(names)):
        if not any(m in adapter.modules for adapter in round_.adapters):
            alone = previous_of(round_, m)
            if alone is not None:
                sizes.previous_norms[i], sizes.previous_components[i] = size_alone(*alone)
    return Gathered(evidence, sizes, held, stacks)


def gather_cores(
    stacks: Stacks, side: str, engine: Engine, held: Mapping[str, PackedGrams]
) -> SideCores:
    """Where sharing shows in one side only: that side's joint cores."""
    round_ = stacks.round
    ranks = largest_ranks(round_, list(round_.module_shapes))

    def work(modules: list[str]) -> list[tuple[str, SideCores]]:
        with naming_module(modules[0]):
            kept = [held[m] for m in modules if m in held]
            if len(kept) == len(modules):
                found = [side_cores(pair.of_clients(), side) for pair in kept]
            elif wide(round_, modules[0]):
                found = [wide_evidence(stacks.of(modules)).cores(side)]
            else:
                pair = grams(stacks.of(modules))
                found = [side_cores(pair.module(i), side) for i in range(len(modules))]
            return [(m, one.widened(ranks)) for m, one in zip(modules, found, strict=True)]

    each = engine.each if stacks.resident is None else engine.each_there
    found: dict[str, SideCores] = {}
    for some in each("decomposing", work, batches(round_, engine.device)):
        found.update(some)
    return joint_cores([found[module] for module in sorted(found)])
