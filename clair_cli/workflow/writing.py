"""Exact updates as an adapter to write: rank, scale and dtype chosen, the cost of each measured.

Updates are asked for module by module and let go again: first for their singular values, which
decide the rank, then once more for the factors at that rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clair_cli.errors import OutputError
from clair_cli.formats.adapter import Adapter
from clair_cli.formats.write_adapter import merged_config, merged_prefix, tensor_names
from clair_cli.maths.lowrank import Product, numerical_rank, singular_values, spectrum, tail_norm
from clair_cli.maths.merge import SERVING_RANKS, WrittenModule, choose_rank, write_module
from clair_cli.workflow.describe import number
from clair_cli.workflow.settings import Settings

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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


# Gives one module's exact update, the same one whenever asked.
Produce = Callable[[str], Product]


def write_adapter(
    produce: Produce, modules: Sequence[str], adapters: Sequence[Adapter], settings: Settings
) -> WrittenAdapter:
    """Choose rank, scale and dtype for exact updates, cut them and measure the error.

    Args:
        produce: the update of a module.
        modules: sorted names.
        adapters: the clients whose names, prefix, dtype and config fields are followed.

    Raises:
        OutputError: the update does not fit the dtype asked for.
    """
    values = {m: singular_values(produce(m)) for m in modules}
    norms = {m: tail_norm(v, 0) for m, v in values.items()}
    norm = math.hypot(*norms.values())
    full_rank = max(1, max((numerical_rank(v) for v in values.values()), default=1))
    ranks = sorted({*SERVING_RANKS, full_rank})
    tails = {r: math.hypot(*(tail_norm(v, r) for v in values.values())) for r in ranks}
    errors = {r: _over(tails[r], norm) or 0.0 for r in SERVING_RANKS}
    rank, capped = _rank(settings, adapters, errors, full_rank)
    alpha, scaling, rslora = _scale(settings, adapters, rank)
    written, dtype = _written(produce, modules, rank, scaling, settings, adapters)
    prefix = merged_prefix(adapters)
    tensors: dict[str, Tensor] = {}
    for module, pair in written.items():
        key_A, key_B = tensor_names(prefix, module)
        tensors[key_A], tensors[key_B] = pair.lora_A, pair.lora_B
    return WrittenAdapter(
        tensors=tensors,
        config={**merged_config(adapters, modules, rank, alpha), "use_rslora": rslora},
        rank=rank,
        alpha=alpha,
        scaling=scaling,
        dtype=dtype,
        full_rank=full_rank,
        norm=norm,
        error=_over(math.hypot(*(w.error for w in written.values())), norm),
        error_by_rank={str(r): _over(tails[r], norm) for r in ranks},
        module_error_by_rank={
            m: {str(r): _over(tail_norm(v, r), norms[m]) for r in ranks} for m, v in values.items()
        },
        capped=capped,
        warnings=_warnings(settings, rank, capped, _over(tails.get(rank, 0.0), norm)),
    )


def _over(value: float, norm: float) -> float | None:
    return number(value / norm) if norm > 0 else None


def _rank(
    settings: Settings, adapters: Sequence[Adapter], errors: Mapping[int, float], full_rank: int
) -> tuple[int, bool]:
    """The rank to write, and whether the largest serving rank misses the error target."""
    if isinstance(settings.rank, int):
        return settings.rank, False
    if settings.rank == "full":
        return full_rank, False
    if settings.rank == "same":
        counts = Counter(m.rank for a in adapters for m in a.modules.values())
        return min(counts, key=lambda r: (-counts[r], r)), False
    return choose_rank(errors, settings.error_target)


def _scale(settings: Settings, adapters: Sequence[Adapter], rank: int) -> tuple[float, float, bool]:
    """(alpha, scaling, use_rslora) to write: scale exactly 1, or the clients' own alpha."""
    if not settings.keep_alpha:
        return float(rank), 1.0, False
    alphas = Counter(m.alpha for a in adapters for m in a.modules.values() if m.alpha > 0)
    if not alphas:
        return float(rank), 1.0, False
    alpha = min(alphas, key=lambda a: (-alphas[a], a))
    rslora = all(a.config.use_rslora for a in adapters)
    return alpha, alpha / (math.sqrt(rank) if rslora else rank), rslora


def _written(
    produce: Produce,
    modules: Sequence[str],
    rank: int,
    scaling: float,
    settings: Settings,
    adapters: Sequence[Adapter],
) -> tuple[dict[str, WrittenModule], str]:
    """Write every module in the dtype asked for; `auto` widens when one overflows."""
    dtypes = {m.dtype for a in adapters for m in a.modules.values()}
    auto = dtypes.pop() if len(dtypes) == 1 else "float32"
    wanted = (auto if auto in TORCH_DTYPES else "float32", "float32")
    for dtype in dict.fromkeys(wanted) if settings.dtype == "auto" else (settings.dtype,):
        written: dict[str, WrittenModule] = {}
        for module in modules:
            exact = spectrum(produce(module))
            cut = write_module(exact, rank, scaling, TORCH_DTYPES[dtype])
            if cut is None:
                lost, largest = module, float(exact.values[0])
                break
            written[module] = cut
        else:
            return written, dtype
    raise OutputError(
        f"module {lost!r} does not fit {dtype}: its largest singular value is {largest:.3g}",
        hint="choose a wider --dtype",
    )


def _warnings(settings: Settings, rank: int, capped: bool, error: float | None) -> tuple[str, ...]:
    if not capped:
        return ()
    return (
        f"rank {rank} is the largest that serving engines accept, and leaves an error of "
        f"{error or 0.0:.2f}, above --error-target {settings.error_target:g}",
    )
