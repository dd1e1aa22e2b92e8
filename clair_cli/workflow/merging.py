"""Second pass: merge the clients with a weight, module by module, and say what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.errors import OutputError
from clair_cli.formats.adapter import Adapter
from clair_cli.formats.write_adapter import merged_config, merged_prefix, tensor_names
from clair_cli.maths.lowrank import Product, Spectrum
from clair_cli.maths.merge import (
    SERVING_RANKS,
    MergedModule,
    WrittenModule,
    choose_rank,
    merge_module,
    write_module,
)
from clair_cli.maths.stack import Factors
from clair_cli.workflow.describe import number
from clair_cli.workflow.judging import Judged
from clair_cli.workflow.passes import factors_of, previous_of, updates_of
from clair_cli.workflow.settings import Settings

TORCH_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "float64": torch.float64,
}  # fmt: skip


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter as it will stand in a file, and how exactly it says what was computed.

    Attributes:
        tensors: by tensor name. config: the adapter config.
        rank, alpha, scaling, dtype: one for all modules.
        full_rank: the largest rank any module has before it is cut.
        norm: of the exact update. error: of what is written, over `norm`; None for a zero one.
        error_by_rank, module_error_by_rank: of truncation alone, over the norms.
        capped: whether the largest serving rank misses the error target.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]
    rank: int
    alpha: float
    scaling: float
    dtype: str
    full_rank: int
    norm: float
    error: float | None
    error_by_rank: Mapping[str, float | None]
    module_error_by_rank: Mapping[str, Mapping[str, float | None]]
    capped: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """The merged adapter and its distance to the plain mean of all comparable clients."""

    adapter: WrittenAdapter
    plain_mean_distance: float | None


def merge_round(judged: Judged, settings: Settings) -> Merged:
    """Merge the clients with a weight. Sums run in order of content.

    Raises:
        ClientLost: a tensor changed since the first pass.
        OutputError: the result does not fit the dtype asked for.
    """
    round_ = judged.round
    spectra: dict[str, Spectrum] = {}
    distance = plain = 0.0
    for done, (module, shape) in enumerate(round_.module_shapes.items()):
        settings.tell("merging", done, len(round_.module_shapes))
        module_merge = _merge_one(judged, module, shape)
        spectra[module] = module_merge.spectrum
        distance = math.hypot(distance, module_merge.plain_distance)
        plain = math.hypot(plain, module_merge.plain_norm)
    settings.tell("merging", len(round_.module_shapes), len(round_.module_shapes))
    adapters = [round_.adapters[k] for k in judged.merged]
    return Merged(
        write_adapter(spectra, adapters, settings), distance / plain if plain > 0 else None
    )


def _merge_one(judged: Judged, module: str, shape: tuple[int, int]) -> MergedModule:
    """One module: the weighted mean of the updates, on top of the previous adapter if given."""
    previous = previous_of(judged.round, module)
    clients = updates_of(judged.round, module, previous)
    weights, plain = judged.weights, judged.plain_weights
    if previous is not None:
        clients, weights, plain = [*clients, previous], (*weights, 1.0), (*plain, 1.0)
    return merge_module(clients, weights, plain, shape)


def write_adapter(
    spectra: Mapping[str, Spectrum], adapters: list[Adapter], settings: Settings
) -> WrittenAdapter:
    """Choose rank, scale and dtype for exact updates, cut them and measure the error.

    Args:
        spectra: exact updates by module, sorted by name.
        adapters: the clients whose names, prefix, dtype and config fields are followed.
    """
    norms = {m: float(torch.linalg.vector_norm(s.values)) for m, s in spectra.items()}
    norm = math.hypot(*norms.values()) if norms else 0.0
    full_rank = max(1, max((s.rank for s in spectra.values()), default=1))
    ranks = sorted({*SERVING_RANKS, full_rank})
    by_module = {m: {str(r): _over(s.tail(r), norms[m]) for r in ranks} for m, s in spectra.items()}
    tails = {r: math.hypot(*(s.tail(r) for s in spectra.values())) for r in ranks}
    errors = {r: (_over(tails[r], norm) or 0.0) for r in SERVING_RANKS}
    rank, capped = _rank(settings, adapters, errors, full_rank)
    alpha, scaling, rslora = _scale(settings, adapters, rank)
    written, dtype = _cast(spectra, rank, scaling, settings, adapters)
    tensors: dict[str, Tensor] = {}
    prefix = merged_prefix(adapters)
    for module, pair in written.items():
        key_A, key_B = tensor_names(prefix, module)
        tensors[key_A], tensors[key_B] = pair.lora_A, pair.lora_B
    config = {**merged_config(adapters, list(spectra), rank, alpha), "use_rslora": rslora}
    error = math.hypot(*(w.error for w in written.values())) if written else 0.0
    return WrittenAdapter(
        tensors, config, rank, alpha, scaling, dtype, full_rank, norm, _over(error, norm),
        {str(r): _over(tails[r], norm) for r in ranks}, by_module, capped,
        _warnings(settings, rank, capped, _over(tails.get(rank, 0.0), norm)),
    )  # fmt: skip


def _over(value: float, norm: float) -> float | None:
    return number(value / norm) if norm > 0 else None


def _rank(
    settings: Settings, adapters: list[Adapter], errors: dict[int, float], full_rank: int
) -> tuple[int, bool]:
    if isinstance(settings.rank, int):
        return settings.rank, False
    if settings.rank == "full":
        return full_rank, False
    if settings.rank == "same":
        counts = Counter(m.rank for a in adapters for m in a.modules.values())
        return min(counts, key=lambda r: (-counts[r], r)), False
    return choose_rank(errors, settings.error_target)


def _scale(settings: Settings, adapters: list[Adapter], rank: int) -> tuple[float, float, bool]:
    """(alpha, scaling, use_rslora) to write: scale exactly 1, or the clients' own alpha."""
    if not settings.keep_alpha:
        return float(rank), 1.0, False
    alphas = Counter(m.alpha for a in adapters for m in a.modules.values() if m.alpha > 0)
    if not alphas:
        return float(rank), 1.0, False
    alpha = min(alphas, key=lambda a: (-alphas[a], a))
    rslora = all(a.config.use_rslora for a in adapters)
    return alpha, alpha / (math.sqrt(rank) if rslora else rank), rslora


def _cast(
    spectra: Mapping[str, Spectrum], rank: int, scaling: float, settings: Settings,
    adapters: list[Adapter],
) -> tuple[dict[str, WrittenModule], str]:  # fmt: skip
    """Write every module in the dtype asked for; `auto` widens when it overflows."""
    dtypes = {m.dtype for a in adapters for m in a.modules.values()}
    auto = dtypes.pop() if len(dtypes) == 1 else "float32"
    auto = "float32" if auto == "float64" else auto
    wanted = auto if settings.dtype == "auto" else settings.dtype
    for dtype in dict.fromkeys([wanted, "float32"] if settings.dtype == "auto" else [wanted]):
        written = {
            m: write_module(s, rank, scaling, TORCH_DTYPES[dtype]) for m, s in spectra.items()
        }
        lost = [m for m, w in written.items() if w is None]
        if not lost:
            return {m: w for m, w in written.items() if w is not None}, dtype
    largest = max(float(spectra[m].values[0]) for m in lost)
    raise OutputError(
        f"module {lost[0]!r} does not fit {dtype}: its largest singular value is {largest:.3g}",
        hint="choose a wider --dtype",
    )


def _warnings(settings: Settings, rank: int, capped: bool, error: float | None) -> tuple[str, ...]:
    if not capped:
        return ()
    return (
        f"rank {rank} is the largest that serving engines accept, and leaves an error of "
        f"{error or 0.0:.2f}, above --error-target {settings.error_target:g}",
    )


def as_product(factors: Factors, shape: tuple[int, int]) -> Product:
    """One client's update as a product, scaling multiplied in."""
    from clair_cli.maths.merge import weighted_sum

    return weighted_sum([factors], [1.0], shape)


__all__ = ["Merged", "WrittenAdapter", "as_product", "factors_of", "merge_round", "write_adapter"]
