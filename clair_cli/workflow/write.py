"""Exact updates as an adapter to write: rank, scale and dtype chosen, the cost of each measured.

Two looks at each module: its singular values decide the rank, then its factors are kept at that
rank only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config_source import HEADER_FIELD
from clair_cli.adapters.output_format import OutputFormat
from clair_cli.adapters.write import config_json, merged_config
from clair_cli.errors import OutputError
from clair_cli.formats.safetensors.writer import SafetensorsParts
from clair_cli.maths.factors.lowrank import numerical_rank, tail_norm
from clair_cli.maths.factors.thin import Thin
from clair_cli.maths.merge.mean import SERVING_RANKS, choose_rank
from clair_cli.maths.merge.rounding import WrittenModule, write_modules
from clair_cli.output.adapter_files import AdapterFiles, adapter_files
from clair_cli.settings import Settings
from clair_cli.workflow.describe import number
from clair_cli.workflow.outputs import Destination
from clair_cli.workflow.result_limits import check_adapter

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter as it will stand in a file, and how exactly it says what was computed.

    Attributes:
        tensors: by tensor name, if they were kept. config: the adapter config.
        files: their bytes.
        format: whose names the tensors have.
        rank, alpha, scaling, dtype: one for all modules.
        full_rank: the largest rank any module has before it is cut.
        norm: of the exact update. error: of what is written, over `norm`; None for a zero one.
        error_by_rank, module_error_by_rank: of truncation alone, over the norms.
        capped: whether the largest serving rank misses the error target.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, object]
    files: AdapterFiles
    format: str
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


class AdapterWriter:
    """Turns exact updates into an adapter in two looks at each module.

    `observe` takes every module's singular values, `plan` then chooses rank, scale and dtype,
    `cut` makes a module's factors at that rank (on any thread), and `put` keeps them.

    Args:
        adapters: the clients whose dtype and config fields are followed.
        output: how all of the run's adapters are written.
        destination: gets the file's bytes as they are made. Where it is one file, that stands
            alone, and its header holds the config.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        output: OutputFormat,
        settings: Settings,
        destination: Destination,
    ) -> None:
        self._adapters, self._output, self._settings = adapters, output, settings
        self._destination = destination
        self._values: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}
        self._error = 0.0

    def observe(self, module: str, values: Tensor) -> None:
        self._values[module] = values

    @property
    def rank(self) -> int:
        """Of what is written, once planned."""
        return self._rank

    def plan(self) -> None:
        """Choose rank, scale and dtype from all modules observed."""
        values = self._values.values()
        self._norm = math.hypot(*(tail_norm(v, 0) for v in values))
        self._full = max(1, max((numerical_rank(v) for v in values), default=1))
        self._ranks = sorted({*SERVING_RANKS, self._full})
        tails = {r: math.hypot(*(tail_norm(v, r) for v in values)) for r in self._ranks}
        self._errors = {r: _over(tails[r], self._norm) for r in self._ranks}
        errors = {r: self._errors[r] or 0.0 for r in SERVING_RANKS}
        self._rank, self._capped = _rank(self._settings, self._adapters, errors, self._full)
        self._scale = _scale(self._settings, self._adapters, self._rank)
        largest = max((float(v[0]) for v in values if len(v)), default=0.0)
        self._dtype, self._why = _dtype(
            self._settings, self._adapters, largest / self._scale.scaling
        )
        self._file = self._begin_file()

    @property
    def dtype(self) -> torch.dtype:
        """Of what is written, once planned."""
        return TORCH_DTYPES[self._dtype]

    def cut(self, modules: Sequence[str], exact: Thin) -> dict[str, WrittenModule]:
        """Some modules' factors as they will be written.

        Raises:
            OutputError: they do not fit the dtype.
        """
        found: dict[str, WrittenModule] = {}
        every = write_modules(exact, self._rank, self._scale.scaling, self.dtype)
        for module, written, values in zip(modules, every, exact.values, strict=True):
            if written is None:
                raise OutputError(
                    f"module {module!r} does not fit {self._dtype}: its largest singular value is "
                    f"{float(values[0]):.3g}",
                    hint="choose a wider --dtype",
                )
            found[module] = written
        return found

    def put(self, module: str, written: WrittenModule) -> None:
        """Keep one module's factors, and hash them if it is their turn."""
        factors = {module: (written.lora_A, written.lora_B)}
        for name, tensor in self._output.tensors(factors, self._scale.scaling).items():
            if self._destination.keep_tensors:
                self._tensors[name] = tensor
            self._file.add(name, tensor)
        self._error = math.hypot(self._error, written.error)

    def finish(self) -> WrittenAdapter:
        """The adapter, once every module was put."""
        text = None if self._config_inside else config_json(self._config)
        return WrittenAdapter(
            tensors=self._tensors,
            config=self._config,
            files=adapter_files(self._file, text),
            format=self._output.format,
            rank=self._rank,
            alpha=self._scale.alpha,
            scaling=self._scale.scaling,
            dtype=self._dtype,
            full_rank=self._full,
            norm=self._norm,
            error=_over(self._error, self._norm),
            error_by_rank={str(r): e for r, e in self._errors.items()},
            module_error_by_rank={
                m: {str(r): _over(tail_norm(v, r), tail_norm(v, 0)) for r in self._ranks}
                for m, v in self._values.items()
            },
            capped=self._capped,
            warnings=self._why
            + _warnings(self._settings, self._rank, self._capped, self._errors.get(self._rank)),
        )

    def _begin_file(self) -> SafetensorsParts:
        """The file's header: everything but the values is known. A folder of PEFT's has a file
        of its own for the config."""
        modules, output, scaling = sorted(self._values), self._output, self._scale.scaling
        config = merged_config(self._adapters, modules, self._rank, self._scale.alpha)
        self._config = output.config({**config, "use_rslora": self._scale.use_rslora})
        header = {"format": "pt"}
        if self._config_inside:
            header = output.header(self._config, modules, scaling)
        tensors = output.tensors({m: self._empty(m) for m in modules}, scaling)
        file = SafetensorsParts(tensors, header, self._destination.draft())
        inside = header.get(HEADER_FIELD, "") if self._config_inside else config_json(self._config)
        check_adapter(
            self._settings.limit, rank=self._rank, names=tensors, config_bytes=len(inside),
            header_bytes=file.header_bytes, file_bytes=file.file_bytes,
        )  # fmt: skip
        return file

    @property
    def _config_inside(self) -> bool:
        return self._destination.one_file or self._output.format != "peft"

    def _empty(self, module: str) -> tuple[Tensor, Tensor]:
        rows, columns = self._output.layouts[module].matrix
        lora_A = torch.empty(self._rank, columns, dtype=self.dtype, device="meta")
        return lora_A, torch.empty(rows, self._rank, dtype=self.dtype, device="meta")


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
        each = [[m.rank for m in a.modules.values()] for a in adapters]
        return _commonest(_commonest(ranks) for ranks in each if ranks), False
    return choose_rank(errors, settings.error_target)


N = TypeVar("N", int, float)


def _commonest(values: Iterable[N]) -> N:
    """The most common of some values, of equally common ones the least. Among clients each has one
    vote, however many modules it has."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


@dataclass(frozen=True)
class _Scale:
    """What is written for the scale: scaling = alpha / rank, or alpha / sqrt(rank)."""

    alpha: float
    scaling: float
    use_rslora: bool


def _scale(settings: Settings, adapters: Sequence[Adapter], rank: int) -> _Scale:
    """A scale of exactly 1, or the clients' own alpha (positive ones only) if asked for."""
    each = [[m.alpha for m in a.modules.values() if m.alpha > 0] for a in adapters]
    if not settings.keep_alpha or not any(each):
        return _Scale(float(rank), 1.0, False)
    alpha = _commonest(_commonest(alphas) for alphas in each if alphas)
    rslora = all(a.config.use_rslora for a in adapters)
    return _Scale(alpha, alpha / (math.sqrt(rank) if rslora else rank), rslora)


def _dtype(
    settings: Settings, adapters: Sequence[Adapter], largest: float
) -> tuple[str, tuple[str, ...]]:
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
    why: tuple[str, ...] = ()
    if len(counts) > 1:
        listed = ", ".join(sorted(counts))
        most = ", which most of them have" if 2 * counts[own] > len(adapters) else ""
        why = (f"the clients' dtypes differ ({listed}): {own} written{most}",)
    if largest**0.5 > torch.finfo(TORCH_DTYPES[own]).max:
        text = f"{own} might not hold the factors (singular value {largest:.3g}): float32 written"
        return "float32", (text,)
    return own, why


def _widest(dtypes: Set[str]) -> str:
    """One dtype that holds the values of all, of one client's modules."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "float64" if "float64" in dtypes else "float32"


def _warnings(settings: Settings, rank: int, capped: bool, error: float | None) -> tuple[str, ...]:
    if not capped:
        return ()
    return (
        f"rank {rank} is the largest that serving engines accept, and leaves an error of "
        f"{error or 0.0:.2f}, above --error-target {settings.error_target:g}",
    )
