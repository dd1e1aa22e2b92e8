"""How an adapter is written: rank, scale and dtype, from the singular values of all its modules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.base_names import name_to_write
from clair_cli.maths.factors.lowrank import numerical_rank, tail_norm
from clair_cli.maths.merge.mean import SERVING_RANKS, choose_rank
from clair_cli.remark import Remark, note, warning
from clair_cli.settings import Settings
from clair_cli.workflow.describe import number

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Scale:
    """The scale that is written: scaling = alpha / rank, or alpha / sqrt(rank) with rsLoRA."""

    alpha: float
    scaling: float
    use_rslora: bool


@dataclass(frozen=True)
class Cut:
    """How one module's factors are written.

    Attributes:
        rank: of the factors. scaling: what a reader multiplies them with. dtype: of the numbers.
    """

    rank: int
    scaling: float
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """How an adapter is written, and what cutting its modules to one rank costs.

    Attributes:
        cut, scale: for all modules.
        full_rank: the largest rank that any module has.
        norm: of all exact delta weights together.
        error: relative error of cutting to `cut.rank`, rounding left out; None for a zero adapter.
        error_by_rank: relative error of truncation alone, by rank; None for a zero adapter.
        module_error_by_rank: the same of every module.
        warnings: why rank or dtype are not as the clients or the options have them.
        capped: whether the largest serving rank misses the error target.
    """

    cut: Cut
    scale: Scale
    full_rank: int
    norm: float
    error: float | None
    error_by_rank: Mapping[str, float | None]
    module_error_by_rank: Mapping[str, Mapping[str, float | None]]
    warnings: tuple[Remark, ...]
    capped: bool


def plan_adapter(
    values: Mapping[str, Tensor], adapters: Sequence[Adapter], settings: Settings
) -> Plan:
    """Choose rank, scale and dtype.

    Args:
        values: singular values of the exact delta weight by module, descending.
        adapters: the clients whose ranks, alphas and dtypes are followed.
    """
    each = list(values.values())
    norm = math.hypot(*(tail_norm(v, 0) for v in each))
    full = max(1, max((numerical_rank(v) for v in each), default=1))
    ranks = sorted({*SERVING_RANKS, full})
    errors = {r: relative(math.hypot(*(tail_norm(v, r) for v in each)), norm) for r in ranks}
    serving = {r: errors[r] or 0.0 for r in SERVING_RANKS}
    rank, capped = _rank(settings, adapters, serving, full)
    scale = _scale(settings, adapters, rank)
    largest = max((float(v[0]) for v in each if len(v)), default=0.0)
    dtype, warnings = _dtype(settings, adapters, largest / scale.scaling)
    if capped:
        text = (
            f"rank {rank} is the largest that serving engines accept, and leaves an error of "
            f"{errors.get(rank) or 0.0:.2f}, above --error-target {settings.error_target:g}"
        )
        warnings += (warning("rank_capped", text),)
    names = [a.config.base_model_name_or_path for a in adapters]
    if settings.base_model is None and any(filter(None, names)) and name_to_write(names) is None:
        text = (
            "the written config names no base model: no name is most clients' own, or it is a path "
            "on somebody's machine; --base-model writes one"
        )
        warnings += (note("base_not_written", text),)
    return Plan(
        Cut(rank, scale.scaling, dtype), scale, full, norm,
        relative(math.hypot(*(tail_norm(v, rank) for v in each)), norm),
        {str(r): e for r, e in errors.items()},
        {
            m: {str(r): relative(tail_norm(v, r), tail_norm(v, 0)) for r in ranks}
            for m, v in values.items()
        },
        warnings, capped,
    )  # fmt: skip


def possible_cuts(adapters: Sequence[Adapter], settings: Settings) -> tuple[Cut, ...]:
    """The cuts that `plan_adapter` may choose, in order of rank, as far as that can be said before
    the singular values are known: none where the full rank is asked for. It takes none of them
    where the clients' dtype is too small.

    Args:
        adapters: as for `plan_adapter`.
    """
    if settings.rank == "full":
        return ()
    ranks: Sequence[int] = SERVING_RANKS
    if settings.rank != "auto":
        ranks = (_rank(settings, adapters, {}, 0)[0],)
    dtype, _ = _dtype(settings, adapters, 0.0)
    return tuple(Cut(rank, _scale(settings, adapters, rank).scaling, dtype) for rank in ranks)


def relative(error: float, norm: float) -> float | None:
    """An error over a norm, None for a zero norm."""
    return number(error / norm) if norm > 0 else None


def _rank(
    settings: Settings, adapters: Sequence[Adapter], errors: Mapping[int, float], full_rank: int
) -> tuple[int, bool]:
    """The rank to write, and whether the largest serving rank misses the error target."""
    if isinstance(settings.rank, int):
        return settings.rank, False
    if settings.rank == "full":
        return full_rank, False
    if settings.rank == "same":
        each = [[m.rank for m in a.modules.values()] for a in adapters]
        return _commonest(_commonest(ranks) for ranks in each if ranks), False
    return choose_rank(errors, settings.error_target)


def _commonest(values: Iterable[N]) -> N:
    """The most common value, of equally common ones the least. Among clients each has one vote,
    however many modules it has."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _scale(settings: Settings, adapters: Sequence[Adapter], rank: int) -> Scale:
    """A scale of exactly 1, or the clients' own alpha (positive ones only) if asked for."""
    each = [[m.alpha for m in a.modules.values() if m.alpha > 0] for a in adapters]
    if not settings.keep_alpha or not any(each):
        return Scale(float(rank), 1.0, False)
    alpha = _commonest(_commonest(alphas) for alphas in each if alphas)
    rslora = all(a.config.use_rslora for a in adapters)
    return Scale(alpha, alpha / (math.sqrt(rank) if rslora else rank), rslora)


def _dtype(
    settings: Settings, adapters: Sequence[Adapter], largest: float
) -> tuple[str, tuple[Remark, ...]]:
    """The dtype to write, and why it is not the clients' own; `auto` takes that of more than half
    of them unless it might overflow, and else float32.

    Args:
        largest: singular value over the scaling; no entry of a factor exceeds its root.
    """
    if settings.dtype != "auto":
        return settings.dtype, ()
    counts = Counter(_widest({m.dtype for m in adapter.modules.values()}) for adapter in adapters)
    own, count = max(counts.items(), key=lambda item: (item[1], item[0]), default=("float32", 0))
    if own not in TORCH_DTYPES or 2 * count <= len(adapters):
        own = "float32"
    why: tuple[Remark, ...] = ()
    if len(counts) > 1:
        listed = ", ".join(sorted(counts))
        most = ", which most of them have" if 2 * counts[own] > len(adapters) else ""
        text = f"the clients' dtypes differ ({listed}): {own} written{most}"
        why = (note("dtypes_differ", text),)
    if largest**0.5 > torch.finfo(TORCH_DTYPES[own]).max:
        text = f"{own} might not hold the factors (singular value {largest:.3g}): float32 written"
        return "float32", (note("dtype_too_small", text),)
    return own, why


def _widest(dtypes: Set[str]) -> str:
    """One dtype that holds the values of all, of one client's modules."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "float64" if "float64" in dtypes else "float32"
