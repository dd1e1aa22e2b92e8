"""The format that an adapter is written in, most clients' or the one asked for: tensors, header."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config_source import HEADER_FIELD
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.mlx_config import mlx_config
from clair_cli.adapters.names.kohya import header_of
from clair_cli.adapters.names.pair import DIFFUSION_MODEL
from clair_cli.adapters.names.parts import FORMATS, Format
from clair_cli.adapters.names.peft import PREFIX
from clair_cli.adapters.output_paths import OPTION, NamelessModules, adapters_of, module_paths
from clair_cli.adapters.same_modules import split_part
from clair_cli.formats.filenames import MLX_WEIGHTS, WEIGHTS
from clair_cli.remark import Remark, note

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OutputFormat:
    """How the adapters of one run are written.

    Attributes:
        prefix: what stands before every module path: "base_model.model." or "". Of a PEFT folder
            it is always the former; see `placed`.
        names: module to its path in the file, for every module that may be written.
        layouts: module to layout, likewise.
        alpha_tensors: whether a scale other than 1 is written as an alpha tensor of each module,
            because that is where the readers of such files look.
    """

    format: Format
    prefix: str
    names: Mapping[str, str]
    layouts: Mapping[str, Layout]
    alpha_tensors: bool = False

    def placed(self, *, one_file: bool, in_folder: bool) -> OutputFormat:
        """The format of a file that stands alone, of one in a folder, or (neither) in memory.

        PEFT's loader takes a folder's scale from its config alone, and finds only the modules whose
        names begin with "base_model.model." (peft/utils/save_and_load.py).
        """
        if self.format != "peft" or one_file:
            return self
        return replace(self, prefix=PREFIX if in_folder else self.prefix, alpha_tensors=False)

    def tensor_names(self, module: str) -> tuple[str, str]:
        """`(key_A, key_B)` of a module."""
        path = f"{self.prefix}{self.names[module]}"
        if self.format == "mlx":
            return f"{path}.lora_a", f"{path}.lora_b"
        if self.format == "kohya":
            return f"{path}.lora_down.weight", f"{path}.lora_up.weight"
        if self.layouts[module].kind == "embedding":
            return f"{path}.lora_embedding_A", f"{path}.lora_embedding_B"
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight"

    def dense_name(self, name: str, module: str = "") -> str:
        """The tensor name of a dense tensor, in PEFT's format, which alone has names for them.

        Args:
            name: of the parameter, as in `DenseTensor`; of a bias of `lora_B` after its module's.
            module: of such a bias, its module.
        """
        if module:
            name = self.names[module] + name.removeprefix(module)
        return f"{self.prefix}{name}"

    def tensors(
        self,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        scaling: float,
        *,
        alphas: bool | None = None,
    ) -> dict[str, Tensor]:
        """The tensors of a file, by name; in kohya's format with an alpha for each module, in
        others where `alpha_tensors` says so and the scale is not 1.

        Args:
            factors: module to matrices (rank, columns) and (rows, rank).
            scaling: the factor before `B @ A`, the same for all modules; finite, not 0.
            alphas: whether some module's scale is not 1; None for this one's.
        """
        import torch

        alphas = scaling != 1 if alphas is None else alphas
        result: dict[str, Tensor] = {}
        for module, (lora_A, lora_B) in factors.items():
            key_A, key_B = self.tensor_names(module)
            stored = self.layouts[module].stored(lora_A, lora_B)
            if self.format == "mlx":
                stored = stored[0].T.contiguous(), stored[1].T.contiguous()
            result[key_A], result[key_B] = stored
            if self.format == "kohya" or (self.alpha_tensors and alphas):
                alpha = torch.tensor(scaling * len(lora_A), dtype=torch.float32)
                result[f"{self.prefix}{self.names[module]}.alpha"] = alpha
        return result

    @property
    def has_config_file(self) -> bool:
        """Whether a folder of the format has a config beside its weights."""
        return self.format in ("peft", "mlx")

    @property
    def weights_name(self) -> str:
        """The weights file of a folder with a config."""
        return MLX_WEIGHTS if self.format == "mlx" else WEIGHTS

    def config(
        self, config: Mapping[str, object], modules: Sequence[str], scaling: float
    ) -> dict[str, object]:
        """The config as the format has it, with its target modules by their paths in the file.

        Args:
            config: PEFT's fields.
            modules: those in the file.
            scaling: as in `tensors`.
        """
        if self.format == "mlx":
            return mlx_config(config, [self.names[module] for module in modules], scaling)
        targets = config["target_modules"]
        assert isinstance(targets, list)
        return {**config, "target_modules": sorted(self.names.get(t, t) for t in targets)}

    def header(
        self, config: Mapping[str, object], modules: Sequence[str], scaling: float | None
    ) -> dict[str, str]:
        """The header's metadata of a file that holds its own config.

        There is no config beside alpha tensors in diffusers' format: its loaders refuse the two
        together, and convert the names of a `diffusion_model` but not those in a config (they then
        fail with a KeyError, 'model_type').

        Args:
            config: from `config`, JSON-ready.
            modules: those in the file.
            scaling: as in `tensors`; None where ranks or scales differ between modules.
        """
        if self.format == "kohya":
            rank = int(str(config["r"]))
            alpha = None if scaling is None else scaling * rank
            return {"format": "pt", **header_of(rank, alpha)}
        if self.format == "diffusers" and self.alpha_tensors:
            return {"format": "pt"}
        fields: Mapping[str, object] = config
        if self.format == "diffusers":
            fields = _by_part(config, [self.names[module] for module in modules])
        text = json.dumps(fields, sort_keys=True, allow_nan=False)
        return {"format": "pt", HEADER_FIELD: text}


def choose_output(
    adapters: Sequence[Adapter], layouts: Mapping[str, Layout], wanted: str
) -> tuple[OutputFormat, tuple[Remark, ...]]:
    """The format that adapters are written in, and remarks for the report.

    Args:
        adapters: of the clients, and the previous round's if there is one; at least one.
        layouts: of every module that may be written.
        wanted: "auto" for the format that most adapters have, or one of `FORMATS`.

    Raises:
        NamelessModules: modules that have no name in the format asked for; under "auto", in the
            most common format if few adapters have them, else in no format at all.
    """
    counts = Counter(adapter.format for adapter in adapters)
    own = sorted(counts, key=lambda name: (-counts[name], FORMATS.index(name)))
    if wanted != "auto":
        try:
            return _in_format(next(f for f in FORMATS if f == wanted), adapters, layouts), ()
        except NamelessModules as error:
            error.hint = _hint(adapters, layouts)
            raise
    notes = []
    if len(own) > 1:
        listed = ", ".join(f"{counts[name]} {name}" for name in own)
        text = f"the clients' formats differ ({listed}): {OPTION} chooses what is written"
        notes.append(note("formats_differ", text))
    errors = []
    for name in own:
        try:
            return _in_format(name, adapters, layouts), tuple(notes)
        except NamelessModules as error:
            error.hint = _hint(adapters, layouts)
            if error.minority(adapters):
                raise
            errors.append(error)
            text = f"not written in {name}'s format: {error.message}"
            notes.append(note("other_format", text))
    raise errors[0]


def _hint(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> str:
    """What to do where a format has no names for some modules: the formats that have."""
    able, known = [], {adapter.format for adapter in adapters}
    for name in FORMATS:
        if name == "mlx" and name not in known:
            continue  # it has a name for whatever PEFT's has one for
        with contextlib.suppress(NamelessModules):
            _in_format(name, adapters, layouts)
            able.append(name)
    if able:
        return f"give {OPTION} {' or '.join(able)}"
    return "no format has a name for every module: leave some clients out with --exclude"


def _in_format(
    format_: Format, adapters: Sequence[Adapter], layouts: Mapping[str, Layout]
) -> OutputFormat:
    prefix = ""
    if format_ == "peft":
        counts = Counter(a.prefix for a in adapters_of(adapters, "peft") if a.format == "peft")
        prefix = PREFIX if counts[PREFIX] >= counts[""] else ""
    names = module_paths(format_, adapters, layouts)
    return OutputFormat(format_, prefix, names, layouts, _alpha_tensors(format_, adapters, names))


def _alpha_tensors(format_: Format, adapters: Sequence[Adapter], names: Mapping[str, str]) -> bool:
    """Whether a scale is written as alpha tensors: with `diffusion_model`, or as at least half of
    the adapters of the format have it."""
    if format_ == "diffusers" and any(p.startswith(f"{DIFFUSION_MODEL}.") for p in names.values()):
        return True
    own = adapters_of(adapters, format_)
    return bool(own) and 2 * sum(adapter.alpha_tensors for adapter in own) >= len(own)


def _by_part(config: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """The config once for each part of a pipeline, the part's name before each field.

    Paths of a text encoder are without the `text_model` in front that transformers 5 took away:
    PEFT takes a path for each that ends with it, and so finds the modules of both versions.
    """
    fields: dict[str, object] = {}
    for part in sorted({split_part(name)[0] for name in names}):
        front = "text_model." if part.startswith("text_encoder") else ""
        every = (path for first, path in map(split_part, names) if first == part)
        own = {**config, "target_modules": sorted(path.removeprefix(front) for path in every)}
        for field in ("rank_pattern", "alpha_pattern"):
            given = config[field]
            assert isinstance(given, dict)
            paths = ((split_part(name), value) for name, value in given.items())
            own[field] = {p.removeprefix(front): v for (first, p), v in paths if first == part}
        fields |= {f"{part}.{name}": value for name, value in own.items()}
    return fields
