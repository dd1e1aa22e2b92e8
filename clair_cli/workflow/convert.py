"""One adapter in another format: the same factors under other names, the scale where it belongs.

What names, tensors, config and header look like is `OutputFormat`'s, as for a merge. A merge has
one rank and one scale for all modules; here every module keeps its own, in `rank_pattern` and
`alpha_pattern` or in alpha tensors. Only mlx-lm's format has one of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from clair_cli.adapters.adapter import Adapter, LoraModule
from clair_cli.adapters.config import parse_config
from clair_cli.adapters.config_source import HEADER_FIELD
from clair_cli.adapters.output_format import OutputFormat, choose_output
from clair_cli.adapters.transposed import TransposedSource
from clair_cli.adapters.variants import init_effect
from clair_cli.adapters.write import config_json, merged_config, with_dense
from clair_cli.cohort.heads import head_tensors
from clair_cli.errors import InputRefused
from clair_cli.formats.limits import Limits
from clair_cli.formats.safetensors.source import tensor_of
from clair_cli.formats.safetensors.writer import SafetensorsParts
from clair_cli.output.adapter_files import AdapterFiles, adapter_files
from clair_cli.text import first_few, quoted
from clair_cli.workflow.result_limits import check_adapter

if TYPE_CHECKING:
    from torch import Tensor

    from clair_cli.workflow.destination import Destination

# Fields that a result says in its own way, or that change neither the delta weight nor its use.
_SAID = frozenset((
    "peft_type", "peft_version", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "target_modules", "inference_mode", "layers_to_transform", "layers_pattern", "exclude_modules",
    "bias", "init_lora_weights", "merge_weights", "megatron_core", "qalora_group_size",
    "runtime_config", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config",
))  # fmt: skip
_MLX_KEEPS = frozenset(("base_model_name_or_path", "lora_dropout"))


@dataclass(frozen=True)
class Converted:
    """An adapter in another format.

    Attributes:
        files: its bytes. format: whose tensor names they have.
        lost: what the format has no place for, or only rounded; one phrase each.
    """

    files: AdapterFiles
    format: str
    lost: tuple[str, ...]


@dataclass(frozen=True)
class _Written:
    """How a module is written: its rank and scale in the file, and the factor that its `lora_B`
    is multiplied by."""

    rank: int
    scaling: float
    factor: float = 1.0


def convert_adapter(
    adapter: Adapter, wanted: str, destination: Destination, limits: Limits
) -> Converted:
    """The adapter in a format.

    Args:
        wanted: one of `FORMATS`.
        destination: gets the file's bytes.
        limits: that the result is read with.

    Raises:
        UsageError: modules that have no name in the format.
        InputRefused: an adapter that means something else without its config; a scale that the
            format can't say.
        OutputError: no reader would accept the result.
        RejectedClient: a tensor changed since the adapter was opened.
    """
    _check_experts(adapter)
    layouts = {name: module.layout for name, module in adapter.modules.items()}
    output, _ = choose_output([adapter], layouts, wanted)
    output = output.placed(one_file=destination.one_file, in_folder=not destination.one_file)
    _check_init(adapter, output)
    plan = _plan(adapter, output)
    config = _config(adapter, output, plan)
    header, inside = _header(output, config, plan, one_file=destination.one_file)
    alphas = any(written.scaling != 1 for written in plan.values())
    empty = {}
    for name, module in adapter.modules.items():
        empty.update(output.tensors({name: _empty(adapter, module, plan[name], output)},
                                    plan[name].scaling, alphas=alphas))  # fmt: skip
    dense = head_tensors([adapter]) if output.format == "peft" else ()
    for head in dense:
        dtype = getattr(torch, head.own[0].dtype)
        empty[output.dense_name(head.name, head.module)] = torch.empty(
            head.shape, dtype=dtype, device="meta"
        )
    file = SafetensorsParts(empty, header, destination.draft())
    check_adapter(
        limits, rank=max(w.rank for w in plan.values()), names=empty, config_bytes=len(inside),
        header_bytes=file.header_bytes, file_bytes=file.file_bytes,
    )  # fmt: skip
    for name, module in adapter.modules.items():
        pair = _factors(adapter, module, plan[name], output)
        for key, tensor in output.tensors({name: pair}, plan[name].scaling, alphas=alphas).items():
            if key.endswith(".alpha"):
                _check_alpha(name, float(tensor))
            file.add(key, tensor)
    for head in dense:
        name = output.dense_name(head.name, head.module)
        file.add(name, tensor_of(adapter.source, head.own[0].key))
    text = None if destination.one_file or not output.has_config_file else inside
    kept = config if HEADER_FIELD in header or text is not None else {}
    files = adapter_files(file, text, output.weights_name)
    return Converted(files, output.format, _lost(adapter, output, plan, kept))


def _check_init(adapter: Adapter, output: OutputFormat) -> None:
    """Refuse factors that are relative to a base model which only PEFT's config can describe."""
    init = adapter.config.guarded_init
    if init and output.format != "peft" and init_effect(init).startswith("changes"):
        raise InputRefused(
            f"init_lora_weights {quoted(init)} {init_effect(init)}, and {output.format}'s format "
            "has no place for that",
            hint="save the adapter with path_initial_model_for_weight_conversion, which makes it a "
            "plain LoRA",
        )


def _check_experts(adapter: Adapter) -> None:
    """Refuse fused experts: PEFT's is the only format that has names for them."""
    fused = sorted(name for name, module in adapter.modules.items() if module.expert is not None)
    if fused:
        raise InputRefused(
            f"fused experts ({first_few(fused)}) have names in PEFT's format alone, which the "
            "adapter is in",
            hint="use it as it is",
        )


def _plan(adapter: Adapter, output: OutputFormat) -> dict[str, _Written]:
    modules = adapter.modules
    if output.format != "mlx":
        return {name: _Written(m.rank, m.scaling) for name, m in modules.items()}
    rank = max(module.rank for module in modules.values())
    counts = Counter(m.scaling for m in modules.values() if m.scaling) or Counter([1.0])
    scale = min(counts, key=lambda value: (-counts[value], value))
    return {name: _Written(rank, scale, m.scaling / scale) for name, m in modules.items()}


def _config(
    adapter: Adapter, output: OutputFormat, plan: Mapping[str, _Written]
) -> dict[str, object]:
    """The config as it is written: the most common rank and alpha, the others by module."""
    names = list(plan)
    ranks = {name: written.rank for name, written in plan.items()}
    alphas = {name: _plain(written.scaling * written.rank) for name, written in plan.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    config = merged_config([adapter], names, int(rank), alpha)
    init = adapter.config.init_lora_weights
    if output.format == "peft" and adapter.config.guarded_init:
        config["init_lora_weights"] = init
    for field, each, usual in (("rank_pattern", ranks, rank), ("alpha_pattern", alphas, alpha)):
        paths = {output.names[name]: each[name] for name in names}
        config[field] = _pattern(paths, usual)
    if output.format in ("peft", "diffusers"):
        _check_patterns(config, output, plan)
    scaling = next(iter(plan.values())).scaling
    if output.format == "peft":
        config = with_dense(config, [adapter], {tensor.kind for tensor in adapter.dense.values()})
    return output.config(config, names, scaling)


def _pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """The values by path, for PEFT, which takes the first key that a path ends with: longer paths
    first, and those with the usual value too that another's path is the end of."""
    others = {path for path, value in values.items() if value != usual}
    for path in values:
        dots = (place for place, sign in enumerate(path) if sign == ".")
        if any(path[place + 1 :] in others for place in dots):
            others.add(path)
    return {path: values[path] for path in sorted(others, key=lambda path: (-len(path), path))}


def _plain(alpha: float) -> float | int:
    """A whole number as such, also where a scale was rounded once."""
    near = round(alpha)
    return near if abs(alpha - near) <= 1e-12 * abs(alpha) and abs(near) < 2**53 else alpha


def _check_patterns(
    config: Mapping[str, object], output: OutputFormat, plan: Mapping[str, _Written]
) -> None:
    """Refuse paths that PEFT's patterns, which are regular expressions, can't tell apart."""
    parsed = parse_config(config)
    for name, written in plan.items():
        path = output.names[name]
        scaling = parsed.scaling(path, written.rank)
        same = abs(scaling - written.scaling) <= 1e-9 * abs(written.scaling)
        if parsed.rank_for(path) != written.rank or not same:
            raise InputRefused(
                f"module {quoted(name)}: rank_pattern and alpha_pattern can't tell its path from "
                "another module's, whose rank or scale differs"
            )


def _header(
    output: OutputFormat,
    config: Mapping[str, object],
    plan: Mapping[str, _Written],
    *,
    one_file: bool,
) -> tuple[dict[str, str], str]:
    """The header's metadata, and the text of the config there or in a file of its own."""
    if not one_file and output.has_config_file:
        return {"format": "pt"}, config_json(config)
    scales = {(written.rank, written.scaling) for written in plan.values()}
    scaling = next(iter(plan.values())).scaling if len(scales) == 1 else None
    header = output.header(config, list(plan), scaling)
    return header, header.get(HEADER_FIELD, "")


def _dtype(dtype: torch.dtype, written: _Written, output: OutputFormat) -> torch.dtype:
    """Of a factor as it is written: its own, if mlx-lm takes it and nothing is rounded to it."""
    kept = output.format != "mlx" or (written.factor == 1 and dtype != torch.float64)
    return dtype if kept else torch.float32


def _empty(
    adapter: Adapter, module: LoraModule, written: _Written, output: OutputFormat
) -> tuple[Tensor, Tensor]:
    """The factors' shapes and dtypes."""
    (rows, columns), tensors = module.shape, adapter.source.tensors
    dtypes = [_TORCH[tensors[key].dtype] for key in (module.key_A, module.key_B)]
    plain = replace(written, factor=1.0)
    a, b = _dtype(dtypes[0], plain, output), _dtype(dtypes[1], written, output)
    lora_A = torch.empty(written.rank, columns, dtype=a, device="meta")
    return lora_A, torch.empty(rows, written.rank, dtype=b, device="meta")


_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _factors(
    adapter: Adapter, module: LoraModule, written: _Written, output: OutputFormat
) -> tuple[Tensor, Tensor]:
    """The factors as they are; for mlx-lm with zeros up to the rank and the factor of the scale."""
    lora_A, lora_B = adapter.stored_factors(module.name)
    like_A, like_B = _empty(adapter, module, written, output)
    if written.factor != 1:
        lora_B = lora_B.double() * written.factor
    lora_A, lora_B = lora_A.to(like_A.dtype), lora_B.to(like_B.dtype)
    if written.rank > module.rank:
        missing = written.rank - module.rank
        lora_A = torch.nn.functional.pad(lora_A, (0, 0, 0, missing))
        lora_B = torch.nn.functional.pad(lora_B, (0, missing))
    return lora_A, lora_B


def _check_alpha(module: str, alpha: float) -> None:
    """Refuse a scale that is no alpha: 0 means 1 to some readers."""
    if alpha == 0 or abs(alpha) > torch.finfo(torch.float32).max:
        raise InputRefused(
            f"module {quoted(module)} has an alpha of {alpha:g}, which an alpha tensor can't say"
        )


def _lost(
    adapter: Adapter,
    output: OutputFormat,
    plan: Mapping[str, _Written],
    config: Mapping[str, Any],
) -> tuple[str, ...]:
    """What is in the adapter and not in its result."""
    lost = []
    if adapter.dense and output.format != "peft":
        lost.append(f"what was trained beside the LoRA: {first_few(adapter.dense)}")
    fields = _fields_lost(adapter, output, config)
    if fields:
        lost.append(f"fields of the config: {', '.join(fields)}")
    if adapter.format == "mlx":
        lost.append("the options of the training run in mlx-lm's config")
    source = adapter.source
    source = source.source if isinstance(source, TransposedSource) else source
    metadata = getattr(source, "metadata", {})
    rest = sorted(metadata.keys() - {"format", HEADER_FIELD})
    if rest:
        lost.append(f"{len(rest):,} fields of the header: {first_few(rest)}")
    alphas = {round(written.scaling * written.rank, 12) for written in plan.values()}
    if output.format == "kohya" and len(alphas) > 1:
        # diffusers 0.42, get_peft_kwargs: keys of the old names match no module of a U-Net
        lost.append("to diffusers' loader, and to no other: alphas that differ between modules")
    scaled = [name for name, written in plan.items() if written.factor != 1]
    if scaled:
        text = "scales of their own, which lora_b holds now, rounded to float32"
        lost.append(f"{text}: modules {first_few(scaled)}")
    if output.format == "mlx" and any(m.dtype == "float64" for m in adapter.modules.values()):
        lost.append("float64 numbers, rounded to float32")
    return tuple(lost)


def _fields_lost(adapter: Adapter, output: OutputFormat, config: Mapping[str, Any]) -> list[str]:
    """Fields of the adapter's config with a value that the result's does not hold."""
    every = adapter.config.parts.values() or [adapter.config]
    lost = set()
    for own in every:
        for field, value in own.raw.items():
            empty = value is None or value is False or value in (0, "", [], {})
            kept = field in _MLX_KEEPS if output.format == "mlx" else config.get(field) == value
            if not (empty or kept or field in _SAID):
                lost.add(field)
    return sorted(lost)
