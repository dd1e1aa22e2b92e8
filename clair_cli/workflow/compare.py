"""First pass over the modules: read the clients' factors and compare them.

The factors of a batch of modules are dropped after the comparison, so those of all modules are
never in memory at once. The work on a batch is a pure function of its tensors, in `maths`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors, naming_module, previous_of
from clair_cli.engine.scratch import scratch
from clair_cli.maths.evidence.gather import Evidence, collected, gather
from clair_cli.maths.evidence.overcomplete import overcomplete_evidence
from clair_cli.maths.evidence.own_sizes import OwnSizes, concatenate_sizes, own_sizes, size_alone
from clair_cli.maths.factors.grams import grams, packed
from clair_cli.workflow.batches import batches, kept_grams, overcomplete


@dataclass(frozen=True)
class Comparison:
    """The clients' delta weights in some modules, compared.

    Attributes:
        modules: names, in the order of the rows.
        evidence: of the delta weights, less the previous adapter's.
        sizes: of the clients' own delta weights.
    """

    modules: tuple[str, ...]
    evidence: Evidence
    sizes: OwnSizes


def compare(factors: RoundFactors, engine: Engine) -> Comparison:
    """Compare the clients, and the user's own adapter, in every module, in order of name."""
    round_ = factors.round.compared
    keep = frozenset(kept_grams(round_)) if factors.cache is None else frozenset()
    work = partial(compare_batch, keep)
    parts = engine.map("comparing", work, batches(round_, engine.device), factors, keeping=True)
    found = _collected(parts, tuple(sorted(round_.module_shapes)))
    for i, module in enumerate(found.modules):
        if not any(module in adapter.modules for adapter in round_.adapters):
            alone = previous_of(round_, module)
            if alone is not None:
                sizes = found.sizes
                sizes.previous_norms[i], sizes.previous_components[i] = size_alone(*alone)
    return found


def compare_batch(keep: frozenset[str], factors: RoundFactors, modules: list[str]) -> Comparison:
    """Compare the clients in some modules of one shape.

    Args:
        keep: modules whose Grams are kept in `factors.grams`.
    """
    round_ = factors.round.compared
    with naming_module(modules[0]):
        stack = factors.stack(modules)
        if overcomplete(round_, modules[0]):
            found = overcomplete_evidence(stack)
            return Comparison(tuple(modules), found.evidence, found.sizes)
        pair = grams(stack)
        for i, module in enumerate(modules):
            # a merge's stack has no zero columns, as a batch has for clients of smaller rank
            if module in keep and tuple(round_.module_ranks[module]) == pair.ranks:
                factors.grams[module] = packed(pair.module(i))
        sizes = own_sizes(pair, round_.previous_rank(modules[0]))
        return Comparison(tuple(modules), gather(pair), sizes)


def _collected(parts: Iterable[Comparison], modules: tuple[str, ...]) -> Comparison:
    """All batches as one, with the modules in the given order; each is dropped when its numbers are
    in their place."""
    row = {module: n for n, module in enumerate(modules)}
    sizes: list[OwnSizes] = []
    order: list[int] = []

    def placed() -> Iterator[tuple[list[int], Evidence]]:
        for part in parts:
            rows = [row[module] for module in part.modules]
            order.extend(rows)
            sizes.append(part.sizes)
            yield rows, part.evidence

    evidence = collected(placed(), len(modules), scratch)
    back = sorted(range(len(order)), key=order.__getitem__)
    return Comparison(modules, evidence, concatenate_sizes(sizes, back))
