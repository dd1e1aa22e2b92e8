"""The weighted sum of the clients' delta weights in some modules of one shape, in two looks.

The first look gives a module's singular values, the second its factors cut to a rank. Where an
engine has room for it, the first look cuts modules at once, in all ways that may be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.engine.factors import (
    RoundFactors,
    naming_module,
    summed_weights,
)
from clair_cli.errors import OutputError
from clair_cli.maths.factors.factored_svd import FactoredSVD, factored
from clair_cli.maths.factors.grams import Grams, grams, joined
from clair_cli.maths.factors.lowrank import singular_values, svd
from clair_cli.maths.factors.stack import is_overcomplete
from clair_cli.maths.merge.from_grams import CoreSVD, core_svds, leading_svd
from clair_cli.maths.merge.overcomplete import overcomplete_svd
from clair_cli.maths.merge.rounding import WrittenModule
from clair_cli.workflow.plan import Cut
from clair_cli.workflow.weighted_mean import ReadSums, WeightedMean
from clair_cli.workflow.write import cut_modules

# Singular vectors kept of each module where all of them would take too much memory: an adapter
# seldom has a larger rank, and then they are made again.
_KEPT_VECTORS = 128
# Modules that a CPU cuts together where their components are few, see `together`.
_CUT_TOGETHER = 2
# Largest square of the components' number for modules that a CPU works on together: Python's time
# between the products counts there.
_SMALL = 4 * 256**2
# Amplification of rounding errors up to which products in float32 are far more exact than the dtype
# that is written: errors of 2e-5 beside 4e-3 in bfloat16, and an eighth of both in float16.
MAX_AMPLIFICATION = {torch.bfloat16: 300.0, torch.float16: 37.5}


@dataclass(frozen=True)
class Spectrum:
    """First look at a module.

    Attributes:
        values: singular values, descending, float64, CPU.
        decomposed: whether the second look cuts it from singular vectors in `factors.cores`, which
            it makes again where too few were kept; else by QR of its factors.
    """

    values: Tensor
    decomposed: bool


@dataclass(frozen=True)
class Second:
    """Modules of the second look that are cut together.

    Attributes:
        decomposed: as `Spectrum.decomposed`.
        n_values: how many singular values each has.
    """

    modules: list[str]
    decomposed: bool
    n_values: int


def together(n_components: int, most: int) -> int:
    """How many modules a CPU works on together, 1 to `most`."""
    return max(1, min(most, _SMALL // max(1, n_components**2)))


def second_looks(
    modules: Sequence[str], spectra: Mapping[str, Spectrum], n_components: int, most: int | None
) -> list[Second]:
    """The second looks at the modules of one first look: the same on every engine, as products may
    depend on what is cut together in their last bits.

    Args:
        n_components: of each module.
        most: how many modules are cut together; None for what suits a CPU.
    """
    size = together(n_components, _CUT_TOGETHER) if most is None else most
    alike: dict[int, list[str]] = {}
    for module in modules:
        if spectra[module].decomposed:
            alike.setdefault(len(spectra[module].values), []).append(module)
    found = [
        Second(some[start : start + size], True, n)
        for n, some in alike.items()
        for start in range(0, len(some), size)
    ]
    alone = [module for module in modules if not spectra[module].decomposed]
    return found + [Second([m], False, len(spectra[m].values)) for m in alone]


def decompose(mean: WeightedMean, factors: RoundFactors, modules: list[str]) -> dict[str, Spectrum]:
    """First look at some modules of one shape in which every client has one rank: their singular
    values, and, in `factors.cuts`, or `.cores` and `.read`, what the second look needs."""
    with naming_module(modules[0]):
        if not all(module in factors.grams for module in modules):
            for module in modules:
                factors.keep_read(module, mean.clients, mean.read_room)
        read = ReadSums(mean, factors, modules)
        cores = _cores(read, _vectors_for(mean, factors, modules))
        found = {}
        for module, core in zip(modules, cores, strict=True):
            values = singular_values(read.sum_of(module)) if core is None else core.values
            found[module] = Spectrum(values, core is not None)
        if mean.cuts and read.was_read:
            known = dict(zip(modules, cores, strict=True))
            n = sum(mean.ranks(factors.round, modules[0]))
            for second in second_looks(modules, found, n, None):
                _cut_at_once(read, second, [known[m] for m in second.modules])
            factors.forget_read(modules)
            return found
        for module, core in zip(modules, cores, strict=True):
            if core is not None:
                factors.cores[module] = core
        return found


def cut(
    mean: WeightedMean, how: Cut, factors: RoundFactors, second: Second
) -> dict[str, WrittenModule]:
    """Second look at some modules of one shape: their factors as they will be written. What an
    engine did not keep from the first look, or too little of, is computed again."""
    modules = second.modules
    with naming_module(modules[0]):
        narrow = _narrowed(how, second)
        ready = [factors.cuts.pop(m, {}).get(narrow) for m in modules]
        if all(ready):
            return {m: _padded(w, how.rank) for m, w in zip(modules, ready, strict=True) if w}
        cores: Sequence[CoreSVD | None] = [factors.cores.pop(m, None) for m in modules]
        enough = all(c and c.n_vectors >= min(how.rank, len(c.values)) for c in cores)
        read = ReadSums(mean, factors, modules)
        if second.decomposed and not enough:
            # Grams that are made again may differ in the last bit: then None is possible here too
            cores = _cores(read, None)
        written = _cut_read(read, modules, cores, how)
        factors.forget_read(modules)
        return written


def _vectors_for(mean: WeightedMean, factors: RoundFactors, modules: Sequence[str]) -> int | None:
    """How many singular vectors the first look makes; None for all."""
    if mean.cuts and not all(module in factors.grams for module in modules):
        return max(cut.rank for cut in mean.cuts)
    n, shape = sum(mean.ranks(factors.round, modules[0])), factors.round.module_shapes[modules[0]]
    over = is_overcomplete(n, shape)
    most, size = (min(shape), n + min(shape)) if over else (n, 2 * n)
    fitting = (k for k in (most, _KEPT_VECTORS) if 8 * k * size <= mean.room)
    found = next(fitting, 0)
    return None if found >= most else found


def _cut_at_once(read: ReadSums, second: Second, cores: Sequence[CoreSVD | None]) -> None:
    """Put modules into `factors.cuts` that are cut in the ways of `mean.cuts`, smaller ranks first,
    as many as there is room for."""
    room, shape = read.mean.room, read.factors.round.module_shapes[second.modules[0]]
    found: dict[str, dict[Cut, WrittenModule]] = {module: {} for module in second.modules}
    for how in dict.fromkeys(_narrowed(how, second) for how in read.mean.cuts):
        room -= how.rank * sum(shape) * how.torch_dtype.itemsize
        if room < 0:
            break
        try:
            written = _cut_read(read, second.modules, cores, how)
        except (OutputError, ArithmeticError):  # a fault only if this way is asked for
            continue
        for module, one in written.items():
            # of its own: pickled, a view takes all that it is a view of with it
            found[module][how] = replace(one, lora_A=one.lora_A.clone(), lora_B=one.lora_B.clone())
    read.factors.cuts.update(found)


def _narrowed(how: Cut, second: Second) -> Cut:
    """The cut whose rank is no larger than the number of singular values: more of it is zeros."""
    return replace(how, rank=max(1, min(how.rank, second.n_values)))


def _padded(written: WrittenModule, rank: int) -> WrittenModule:
    """A module with zeros up to a rank."""
    missing = rank - len(written.lora_A)
    if not missing:
        return written
    lora_A, lora_B = written.lora_A, written.lora_B
    return replace(
        written,
        lora_A=torch.cat([lora_A, lora_A.new_zeros(missing, lora_A.shape[1])]),
        lora_B=torch.cat([lora_B, lora_B.new_zeros(len(lora_B), missing)], dim=1),
    )


def _cut_read(
    read: ReadSums, modules: Sequence[str], cores: Sequence[CoreSVD | None], how: Cut
) -> dict[str, WrittenModule]:
    """Some modules as they will be written, those without a decomposition by QR."""
    good = [core for core in cores if core is not None]
    if len(good) == len(modules):
        return cut_modules(how, modules, _leading(read, modules, good, how))
    written: dict[str, WrittenModule] = {}
    for module, core in zip(modules, cores, strict=True):
        if core is None:
            exact = factored(svd(read.sum_of(module)))
        else:
            exact = _leading(read, [module], [core], how)
        written.update(cut_modules(how, [module], exact))
    return written


def _leading(
    read: ReadSums, modules: Sequence[str], cores: Sequence[CoreSVD], how: Cut
) -> FactoredSVD:
    """The leading singular vectors, by products as exact as the dtype that is written needs."""
    amplification = max(core.amplification_to(how.rank) for core in cores)
    single = amplification <= MAX_AMPLIFICATION.get(how.torch_dtype, 0.0)
    products = torch.float32 if single else read.factors.device.dtype
    return leading_svd(read.stack_of(modules), cores, how.rank, products)


def _cores(read: ReadSums, n_vectors: int | None) -> Sequence[CoreSVD | None]:
    """Decompositions of all modules' sums; None where QR of the factors has to make them: where
    the Grams are ill-conditioned, as they always are with more components than width.

    Args:
        n_vectors: how many singular vectors are wanted; None for all.
    """
    mean, round_, modules = read.mean, read.factors.round, read.modules
    n, shape = sum(mean.ranks(round_, modules[0])), round_.module_shapes[modules[0]]
    weights = summed_weights(round_, modules[0], mean.clients, mean.weights)
    if is_overcomplete(n, shape):
        return [overcomplete_svd(read.stack, weights, n_vectors)]  # a batch of its own
    if n > min(shape):
        return [None] * len(modules)
    return core_svds(_grams(read), weights, n_vectors)


def _grams(read: ReadSums) -> Grams:
    """The merged clients' Grams: those kept from the first pass, or made again."""
    factors = read.factors
    kept = [factors.grams.pop(m) for m in read.modules if m in factors.grams]
    if len(kept) < len(read.modules):
        return grams(read.stack)
    found = joined([pair.of_clients(read.mean.clients) for pair in kept])
    factors.device.wait()  # before they are freed: they were made on other streams
    return found
