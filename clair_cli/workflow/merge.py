"""Second pass over the modules: the weighted sum of the clients' delta weights, as an adapter.

Every module is looked at twice. The first look gives its singular values, from which rank, scale
and dtype of the whole adapter follow; the second cuts it to that rank and rounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from clair_cli.cohort.round import Round
from clair_cli.engine.device import Device
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import (
    RoundFactors,
    adds_previous,
    naming_module,
    summed_of,
    summed_weights,
)
from clair_cli.maths.factors.factored_svd import FactoredSVD, factored
from clair_cli.maths.factors.grams import Grams, grams, joined
from clair_cli.maths.factors.lowrank import Product, singular_values, svd
from clair_cli.maths.factors.stack import is_overcomplete
from clair_cli.maths.merge.from_grams import CoreSVD, core_svds, leading_svd
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.maths.merge.overcomplete import overcomplete_svd
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.settings import Settings
from clair_cli.workflow.batches import KEPT_BETWEEN_PASSES
from clair_cli.workflow.bounds import check_sum, largest_sums
from clair_cli.workflow.destination import Destination
from clair_cli.workflow.judge import JudgedRound
from clair_cli.workflow.merge_heads import merge_head, plan_heads
from clair_cli.workflow.plan import Cut, plan_adapter
from clair_cli.workflow.write import AdapterWriter, WrittenAdapter, cut_modules

# Singular vectors kept of each module where all of them would take too much memory: an adapter
# seldom has a larger rank, and then they are made again.
_KEPT_VECTORS = 128
# Modules that a GPU decomposes together, and the share of its memory for vectors that are kept.
_GPU_BATCH, _VECTORS_SHARE = 8, 1 / 16
# Modules that a CPU decomposes, and cuts, together where their components are few: Python's time
# between the products counts there.
_DECOMPOSED_TOGETHER, _CUT_TOGETHER, _SMALL = 4, 2, 4 * 256**2
# Amplification of rounding errors up to which products in float32 are far more exact than the dtype
# that is written: errors of 2e-5 beside 4e-3 in bfloat16, and an eighth of both in float16.
MAX_AMPLIFICATION = {torch.bfloat16: 300.0, torch.float16: 37.5}


@dataclass(frozen=True)
class WeightedMean:
    """What is merged.

    Attributes:
        clients: indices in the round, ascending.
        weights: one positive number each, summing to 1.
        vector_bytes: how much of one module's singular vectors may be kept for the second look.
    """

    clients: tuple[int, ...]
    weights: tuple[float, ...]
    vector_bytes: int

    def ranks(self, round_: Round, module: str) -> list[int]:
        """Rank-one components of every entry of `summed_of`."""
        adapters = [round_.adapters[k] for k in self.clients]
        ranks = [a.modules[module].components if module in a.modules else 0 for a in adapters]
        if adds_previous(round_, module, self.clients):
            ranks.append(round_.previous_rank(module))
        return ranks

    def overcomplete(self, round_: Round, module: str) -> bool:
        """Whether the module's stack is over-complete."""
        return is_overcomplete(sum(self.ranks(round_, module)), round_.module_shapes[module])


@dataclass(frozen=True)
class Spectrum:
    """First look at a module.

    Attributes:
        values: singular values, descending, float64, CPU.
        n_vectors: singular vectors that were kept for the second look; None where the module is
            decomposed by QR of its factors, which keeps none.
    """

    values: Tensor
    n_vectors: int | None


@dataclass(frozen=True)
class Kept:
    """Modules of the second look.

    Attributes:
        decomposed: whether the first look left their singular vectors in `factors.cores`; else
            they are decomposed by QR of their factors.
    """

    modules: list[str]
    decomposed: bool


def merge_round(
    judged: JudgedRound,
    factors: RoundFactors,
    settings: Settings,
    engine: Engine,
    destination: Destination,
) -> WrittenAdapter:
    """Merge the clients with a weight. Sums run in order of content.

    Args:
        factors: of the judged round.
        destination: gets the adapter's bytes as they are made, after those of an earlier try are
            removed.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
        ArithmeticError: see `check_sum`.
    """
    destination.close()
    modules, factors = judged.written, factors.of(judged.summed)
    weights = tuple(judged.weights[k] for k in judged.merged)
    room = max(engine.stores, _room_for_vectors(engine.device)) // max(1, len(modules))
    mean = WeightedMean(judged.merged, weights, room)
    on_device = not any(mean.overcomplete(factors.round, m) for m in modules)

    spectra: dict[str, Spectrum] = {}
    items = _batches(mean, factors, modules)
    for found in engine.map(
        "merging", partial(decompose, mean), items, factors, on_device=on_device, keeping=True
    ):
        spectra.update(found)
    values = {module: spectra[module].values for module in modules}
    most = largest_sums(judged)
    for module in modules:
        check_sum(module, values[module], most[module])

    adapters = [judged.round.adapters[k] for k in judged.merged]
    assert judged.round.output is not None
    plan = plan_adapter(values, adapters, settings)
    heads, remarks = plan_heads(judged, settings)
    plan = replace(plan, warnings=(*plan.warnings, *remarks))
    contents = [(adapter.content(), w) for adapter, w in zip(adapters, weights, strict=True)]
    writer = AdapterWriter(
        plan, adapters, judged.round.output, settings, destination, heads, contents
    )

    second = [
        Kept(some, spectra[some[0]].n_vectors is not None)
        for some in _batches(mean, factors, modules, spectra)
    ]
    for written in engine.map(
        "writing", partial(cut, mean, plan.cut), second, factors, on_device=on_device, keeping=True
    ):
        for module, pair in written.items():
            writer.put(module, pair)
    for head in heads:
        writer.put_head(head, merge_head(judged, head, plan.scale.scaling))
    factors.check()
    return writer.finish()


def decompose(mean: WeightedMean, factors: RoundFactors, modules: list[str]) -> dict[str, Spectrum]:
    """First look at some modules of one shape in which every client has one rank: their singular
    values, and the leading singular vectors kept in `factors.cores`."""
    with naming_module(modules[0]):
        cores = _cores(mean, factors, modules, limited=True)
        found = {}
        for module, core in zip(modules, cores, strict=True):
            if core is None:
                found[module] = Spectrum(singular_values(_sum(mean, factors, module)), None)
            else:
                factors.cores[module] = core
                found[module] = Spectrum(core.values, core.n_vectors)
        return found


def cut(
    mean: WeightedMean, how: Cut, factors: RoundFactors, batch: Kept
) -> dict[str, WrittenModule]:
    """Second look at some modules of one shape: their factors as they will be written. What an
    engine did not keep from the first look, or too little of, is computed again."""
    modules = batch.modules
    with naming_module(modules[0]):
        cores: Sequence[CoreSVD | None] = [factors.cores.pop(m, None) for m in modules]
        enough = all(c and c.n_vectors >= min(how.rank, len(c.values)) for c in cores)
        if batch.decomposed and not enough:
            # Grams that are made again may differ in the last bit: then None is possible here too
            cores = _cores(mean, factors, modules, limited=False)
        good = [core for core in cores if core is not None]
        if len(good) == len(modules):
            return cut_modules(how, modules, _leading(mean, factors, modules, good, how))
        written: dict[str, WrittenModule] = {}
        for module, core in zip(modules, cores, strict=True):
            if core is None:
                exact = factored(svd(_sum(mean, factors, module)))
            else:
                exact = _leading(mean, factors, [module], [core], how)
            written.update(cut_modules(how, [module], exact))
        return written


def _leading(
    mean: WeightedMean,
    factors: RoundFactors,
    modules: Sequence[str],
    cores: Sequence[CoreSVD],
    how: Cut,
) -> FactoredSVD:
    """The leading singular vectors, by products as exact as the dtype that is written needs."""
    amplification = max(core.amplification_to(how.rank) for core in cores)
    single = amplification <= MAX_AMPLIFICATION.get(how.torch_dtype, 0.0)
    products = torch.float32 if single else factors.device.dtype
    return leading_svd(factors.stack(modules, mean.clients), cores, how.rank, products)


def _cores(
    mean: WeightedMean, factors: RoundFactors, modules: Sequence[str], *, limited: bool
) -> Sequence[CoreSVD | None]:
    """Decompositions of some modules' sums; None where QR of the factors has to make them: where
    the Grams are ill-conditioned, as they always are with more components than width.

    Args:
        limited: whether there may be fewer vectors, so that they can be kept.
    """
    round_ = factors.round
    n, shape = sum(mean.ranks(round_, modules[0])), round_.module_shapes[modules[0]]
    weights = summed_weights(round_, modules[0], mean.clients, mean.weights)
    if is_overcomplete(n, shape):
        (module,) = modules
        kept = _n_vectors(mean, min(shape), n + min(shape)) if limited else None
        return [overcomplete_svd(factors.stack([module], mean.clients), weights, kept)]
    if n > min(shape):
        return [None] * len(modules)
    kept = _n_vectors(mean, n, 2 * n) if limited else None
    return core_svds(_grams(mean, factors, modules), weights, kept)


def _n_vectors(mean: WeightedMean, n: int, size: int) -> int | None:
    """How many of `n` vectors of `size` float64 numbers may be kept; None for all of them."""
    fitting = (k for k in (n, _KEPT_VECTORS) if 8 * k * size <= mean.vector_bytes)
    most = next(fitting, 0)
    return None if most >= n else most


def _grams(mean: WeightedMean, factors: RoundFactors, modules: Sequence[str]) -> Grams:
    """The merged clients' Grams: those kept from the first pass, or made again."""
    kept = [factors.grams.pop(m) for m in modules if m in factors.grams]
    if len(kept) < len(modules):
        return grams(factors.stack(modules, mean.clients))
    found = joined([pair.of_clients(mean.clients) for pair in kept])
    factors.device.wait()  # before they are freed: they were made on other streams
    return found


def _sum(mean: WeightedMean, factors: RoundFactors, module: str) -> Product:
    """The weighted sum of one module as a product of stacked factors, on the CPU."""
    round_ = factors.round
    weights = summed_weights(round_, module, mean.clients, mean.weights)
    entries = summed_of(round_, module, mean.clients)
    return weighted_sum(entries, weights, round_.module_shapes[module])


def _room_for_vectors(device: Device) -> int:
    """Bytes of all modules' singular vectors that may be kept for the second look."""
    return (
        KEPT_BETWEEN_PASSES
        if device.name == "cpu"
        else max(KEPT_BETWEEN_PASSES, int(_VECTORS_SHARE * device.memory))
    )


def _batches(
    mean: WeightedMean,
    factors: RoundFactors,
    modules: Iterable[str],
    spectra: dict[str, Spectrum] | None = None,
) -> list[list[str]]:
    """Modules in batches of one shape in which every client has one rank, in order of name.

    Args:
        spectra: from the first look, for the second: only modules with as many vectors kept are
            cut together, and none by QR or with an over-complete stack.
    """
    round_, alike = factors.round, dict[object, list[str]]()
    sizes: dict[str, int] = {}
    for module in modules:
        ranks, shape = mean.ranks(round_, module), round_.module_shapes[module]
        kept = None if spectra is None else spectra[module].n_vectors
        alone = is_overcomplete(sum(ranks), shape) or (spectra is not None and kept is None)
        alike.setdefault(module if alone else (shape, *ranks, kept), []).append(module)
        sizes[module] = sum(ranks)
    most = _DECOMPOSED_TOGETHER if spectra is None else _CUT_TOGETHER
    found = []
    for some in alike.values():
        size = max(1, min(most, _SMALL // max(1, sizes[some[0]] ** 2)))
        if factors.cache is not None:
            size = _GPU_BATCH
        found += [some[start : start + size] for start in range(0, len(some), size)]
    return sorted(found)
