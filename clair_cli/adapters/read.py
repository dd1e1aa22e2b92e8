"""One client's tensors and config, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.config import AdapterConfig
from clair_cli.adapters.dense import dense_tensors
from clair_cli.adapters.experts import expert_by_expert
from clair_cli.adapters.layout import layout_of
from clair_cli.adapters.names.parts import KeyMap, KeyPair
from clair_cli.adapters.transposed import transposed
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.safetensors.source import (
    INTEGER_DTYPES,
    TORCH_DTYPES,
    TensorEntry,
    TensorSource,
    number_of,
)
from clair_cli.remark import Remark
from clair_cli.text import quoted

_WIDER = {  # of two dtypes that differ, one that holds the values of both
    frozenset(("float16", "bfloat16")): "float32",
    frozenset(("float16", "float32")): "float32",
    frozenset(("bfloat16", "float32")): "float32",
}

# Exponents of float32's smallest and largest magnitude, as `TensorEntry` has them; that of zeros
# and subnormal numbers of float64.
_EXPONENTS_F32, _NORMAL_F64 = (-149, 128), -1022

ALPHA_TOLERANCE = 0.01  # an alpha in bfloat16 has three digits


def build_adapter(
    name: str,
    path: str,
    sha256: str,
    source: TensorSource,
    keys: KeyMap,
    config: AdapterConfig,
    limits: Limits,
    *,
    notes: Iterable[Remark] = (),
) -> Adapter:
    """Turn checked tensors, from a file or from memory, into an adapter.

    Args:
        name, path, sha256: as in `Adapter`.
        source: of the tensors that `keys` names.
        keys: from `pair_keys`.
        config: from `parse_config`, `assumed_config` or `inside_config`.
        limits: of them, the rank.
        notes: put before the config's and the pairs'.

    Raises:
        RejectedClient: tensors that are not LoRA pairs, of a wrong dtype, shape or rank, not
            finite, or at odds with the config. Sets `module` where one is to blame.
    """
    if keys.format == "mlx":
        source = transposed(source)
    may_be_integer = {pair.key_alpha for pair in keys.pairs} | {one.key for one in keys.dense}
    for entry in source.tensors.values():
        _check_values(entry, may_be_integer=entry.name in may_be_integer)
    source, keys = expert_by_expert(source, keys, config, limits)
    config.check_patterns({pair.path for pair in keys.pairs})
    modules = {}
    for pair in keys.pairs:
        try:
            modules[pair.module] = _module(pair, keys, source, config, limits)
            _check_magnitude(modules[pair.module], source.tensors)
        except RejectedClient as error:
            error.module = error.module or pair.module
            raise
    scalings = {name: module.scaling for name, module in modules.items()}
    return Adapter(
        name=name,
        path=path,
        sha256=sha256,
        config=config,
        prefix=keys.prefix,
        modules=modules,
        source=source,
        notes=(*notes, *config.notes, *keys.notes),
        format=keys.format,
        dense=dense_tensors(keys.dense, source.tensors, scalings, config.raw),
        alpha_tensors=any(pair.key_alpha is not None for pair in keys.pairs),
    )


def _check_values(entry: TensorEntry, *, may_be_integer: bool) -> None:
    if entry.dtype not in TORCH_DTYPES and not (may_be_integer and entry.dtype in INTEGER_DTYPES):
        allowed = "F32, F16, BF16 or F64"
        raise RejectedClient(
            f"tensor {quoted(entry.name)} has dtype {entry.dtype}, expected {allowed}",
            found=entry.dtype,
            expected=allowed,
        )
    if entry.non_finite:
        count = math.prod(entry.shape)
        raise RejectedClient(
            f"tensor {quoted(entry.name)} has {entry.non_finite:,} NaN or Inf of {count:,} values, "
            f"the first at flat index {entry.first_non_finite}",
            found=f"{entry.non_finite:,} NaN or Inf",
            expected="finite values",
        )
    if entry.dtype == "F64":
        _check_exponent(entry)


def _check_exponent(entry: TensorEntry) -> None:
    """Refuse values outside the range of float32. Their squares may not fit float64, so that norms
    would depend on how a client splits its delta weight between two factors.

    Zeros pass, and so do subnormal numbers: with any factor that passes they make a delta weight
    that counts as zero (`maths.factors.grams.LEAST_NORM`).
    """
    if entry.exponent <= _NORMAL_F64 or _EXPONENTS_F32[0] <= entry.exponent <= _EXPONENTS_F32[1]:
        return
    size = f"1e{round(entry.exponent * math.log10(2))}"
    raise RejectedClient(
        f"tensor {quoted(entry.name)} has values of about {size}, which no training gives and "
        "float32 can't hold",
        found=f"values of about {size}",
        expected="values between 1e-45 and 3e38",
        hint="scale one factor up and the other down: their product stays the same",
    )


def _module(
    pair: KeyPair,
    keys: KeyMap,
    source: TensorSource,
    config: AdapterConfig,
    limits: Limits,
) -> LoraModule:
    entry_A, entry_B = source.tensors[pair.key_A], source.tensors[pair.key_B]
    names = (f"tensor {quoted(pair.key_A)}", f"tensor {quoted(pair.key_B)}")
    layout, rank = layout_of(entry_A.shape, entry_B.shape, embedding=pair.embedding, names=names)
    if rank > limits.max_rank:
        raise RejectedClient(
            f"rank {rank} is above the limit of {limits.max_rank}",
            found=f"rank {rank}",
            expected=f"at most {limits.max_rank}",
            hint=remedy("rank"),
        )
    expected = config.rank_for(pair.path)
    if expected is not None and expected != rank:
        raise RejectedClient(
            f"the tensors have rank {rank} but the config says rank {expected}",
            found=f"rank {rank} in the tensors",
            expected=f"rank {expected} from the config",
        )
    alpha, scaling = _scale(pair, keys, source, config, rank)
    if not math.isfinite(scaling):
        raise RejectedClient(f"scaling is {scaling}", expected="a finite number")
    return LoraModule(
        name=pair.module,
        written=pair.module,
        key_A=pair.key_A,
        key_B=pair.key_B,
        layout=layout,
        rank=rank,
        alpha=alpha,
        scaling=scaling,
        dtype=_dtype(entry_A, entry_B),
        expert=pair.expert,
    )


def _scale(
    pair: KeyPair,
    keys: KeyMap,
    source: TensorSource,
    config: AdapterConfig,
    rank: int,
) -> tuple[float, float]:
    """`(alpha, scaling)` of one module: the file's own alpha counts, the config's must agree.

    kohya's loaders take alpha = rank where the file has none.
    """
    alpha, scaling = config.alpha_for(pair.path, rank), config.scaling(pair.path, rank)
    if pair.key_alpha is not None:
        inside = _alpha_value(pair.key_alpha, source)
        where = f"alpha {inside:g}"
    elif keys.format == "kohya":
        inside, where = float(rank), f"no alpha, which means {rank},"
    else:
        return alpha, scaling
    if config.raw and not math.isclose(inside / rank, scaling, rel_tol=ALPHA_TOLERANCE):
        raise RejectedClient(
            f"the tensors have {where} for rank {rank}, a scale of {inside / rank:g}, but the "
            f"config's scale is {scaling:g}",
            found=f"scale {inside / rank:g} in the tensors",
            expected=f"scale {scaling:g} from the config",
            hint="remove the config, or correct its lora_alpha",
        )
    return inside, inside / rank


def _alpha_value(key: str, source: TensorSource) -> float:
    where, shape = f"alpha tensor {quoted(key)}", source.tensors[key].shape
    if math.prod(shape) != 1:
        raise RejectedClient(f"{where} has shape {shape}", expected="one number")
    value = number_of(source, key)
    if value == 0:
        raise RejectedClient(
            f"{where} is 0, which some loaders take for a zero update and others for alpha = rank",
            found="alpha 0",
            expected="an alpha other than 0",
        )
    return value


# A delta weight's entries may reach 1e100: squares of norms still fit float64, and the product of
# the largest float32 numbers is far below.
_MAX_EXPONENT = math.log2(1e100)


def _check_magnitude(module: LoraModule, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse a delta weight whose entries may be too large for sums of squares in float64."""
    if module.scaling == 0:
        return
    product = tensors[module.key_A].exponent + tensors[module.key_B].exponent
    reached = math.log2(abs(module.scaling)) + math.log2(module.rank) + product
    if reached > _MAX_EXPONENT:
        size = f"1e{round(reached * math.log10(2))}"
        raise RejectedClient(
            f"the update's norm may reach {size} (scaling {module.scaling:.3g}), too large to "
            "compute with",
            module=module.name,
            found=f"up to {size}",
            expected="below 1e100",
        )


def _dtype(entry_A: TensorEntry, entry_B: TensorEntry) -> str:
    names = frozenset((TORCH_DTYPES[entry_A.dtype], TORCH_DTYPES[entry_B.dtype]))
    if len(names) == 1:
        return next(iter(names))
    return _WIDER.get(names, "float64")
