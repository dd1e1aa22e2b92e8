"""The tensor names and header that an adapter is written with: the clients' own, or asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config_source import HEADER_FIELD
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.names.kohya import header_of
from clair_cli.adapters.names.parts import FORMATS, Format
from clair_cli.adapters.names.peft import PREFIX
from clair_cli.adapters.same_modules import dotted_spelling, is_kohya, kohya_spelling, split_part
from clair_cli.errors import UsageError
from clair_cli.text import first_few

if TYPE_CHECKING:
    from torch import Tensor


_OPTION = "--tensor-names"


class Unnamed(UsageError):
    """Modules that have no name in a format.

    Attributes:
        modules: all that are to blame; some clients may be the only ones that have them.
    """

    def __init__(self, message: str, modules: Sequence[str], hint: str) -> None:
        super().__init__(message, hint=hint)
        self.modules = tuple(modules)

    def minority(self, adapters: Sequence[Adapter]) -> dict[str, tuple[Adapter, ...]]:
        """Those of the modules that less than half of the adapters have, with these."""
        held = {m: tuple(a for a in adapters if m in a.modules) for m in self.modules}
        return {m: few for m, few in held.items() if few and 2 * len(few) < len(adapters)}


@dataclass(frozen=True)
class OutputFormat:
    """How one run's adapters are written.

    Attributes:
        prefix: what stands before every module path: "base_model.model." or "".
        names: module to its path in the file, for every module that may be written.
        layouts: module to layout, likewise.
    """

    format: Format
    prefix: str
    names: Mapping[str, str]
    layouts: Mapping[str, Layout]

    def tensor_names(self, module: str) -> tuple[str, str]:
        """`(key_A, key_B)` of a module."""
        path = f"{self.prefix}{self.names[module]}"
        if self.format == "kohya":
            return f"{path}.lora_down.weight", f"{path}.lora_up.weight"
        if self.layouts[module].kind == "embedding":
            return f"{path}.lora_embedding_A", f"{path}.lora_embedding_B"
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight"

    def tensors(
        self, factors: Mapping[str, tuple[Tensor, Tensor]], scaling: float
    ) -> dict[str, Tensor]:
        """What the file holds.

        Args:
            factors: module to matrices (rank, columns) and (rows, rank).
            scaling: what `B @ A` is multiplied by; finite, not 0.
        """
        import torch

        result: dict[str, Tensor] = {}
        for module, (lora_A, lora_B) in factors.items():
            key_A, key_B = self.tensor_names(module)
            result[key_A], result[key_B] = self.layouts[module].stored(lora_A, lora_B)
            if self.format == "kohya":
                alpha = torch.tensor(scaling * len(lora_A), dtype=torch.float32)
                result[f"{self.names[module]}.alpha"] = alpha
        return result

    def config(self, config: Mapping[str, object]) -> dict[str, object]:
        """The config with its target modules by their paths in the file."""
        targets = config["target_modules"]
        assert isinstance(targets, list)
        return {**config, "target_modules": sorted(self.names.get(t, t) for t in targets)}

    def header(
        self, config: Mapping[str, object], modules: Sequence[str], scaling: float
    ) -> dict[str, str]:
        """The header's metadata when the config of these modules is to be in the file itself."""
        if self.format == "kohya":
            rank = int(str(config["r"]))
            return {"format": "pt", **header_of(rank, scaling * rank)}
        fields: Mapping[str, object] = config
        if self.format == "diffusers":
            fields = _by_part(config, [self.names[module] for module in modules])
        text = json.dumps(fields, sort_keys=True, allow_nan=False)
        return {"format": "pt", HEADER_FIELD: text}


def choose_output(
    adapters: Sequence[Adapter], layouts: Mapping[str, Layout], wanted: str
) -> tuple[OutputFormat, tuple[str, ...]]:
    """The format to write, and remarks.

    Args:
        adapters: of the clients, and the previous round's if there is one; at least one.
        layouts: of every module that may be written.
        wanted: "auto" for the format that most adapters have, or one of `FORMATS`.

    Raises:
        Unnamed: modules that can't be named in the format asked for; under "auto", in the most
            common format if few adapters have them, else in no format at all.
    """
    counts = Counter(adapter.format for adapter in adapters)
    own = sorted(counts, key=lambda name: (-counts[name], FORMATS.index(name)))
    if wanted != "auto":
        return _in_format(next(f for f in FORMATS if f == wanted), adapters, layouts), ()
    notes = []
    if len(own) > 1:
        listed = ", ".join(f"{counts[name]} {name}" for name in own)
        notes.append(f"the clients' formats differ ({listed}): {_OPTION} chooses what is written")
    errors = []
    for name in own:
        try:
            return _in_format(name, adapters, layouts), tuple(notes)
        except Unnamed as error:
            if error.minority(adapters):
                raise
            errors.append(error)
            notes.append(f"not written in {name}'s format: {error.message}")
    raise errors[0]


def _in_format(
    format_: Format, adapters: Sequence[Adapter], layouts: Mapping[str, Layout]
) -> OutputFormat:
    if format_ == "kohya":
        names = _kohya_names(adapters, layouts)
        return _checked(OutputFormat("kohya", "", names, layouts))
    if format_ == "diffusers":
        names = _diffusers_names(adapters, layouts)
        return _checked(OutputFormat("diffusers", "", names, layouts))
    own = _own(adapters, "peft")
    counts = Counter(adapter.prefix for adapter in own)
    prefix = PREFIX if counts[PREFIX] >= counts[""] else ""
    return _checked(OutputFormat("peft", prefix, _peft_names(adapters, own, layouts), layouts))


def _own(adapters: Sequence[Adapter], format_: Format) -> list[Adapter]:
    """The adapters whose names are written as they are: those of the format, unless more have
    another one (then a format was asked for, and few clients' names do not decide)."""
    counts = Counter(adapter.format for adapter in adapters)
    if counts[format_] < max(counts.values()):
        return []
    return [adapter for adapter in adapters if adapter.format == format_]


def _checked(output: OutputFormat) -> OutputFormat:
    """Refuse two modules of one name.

    Raises:
        Unnamed: with both.
    """
    by_name: dict[str, str] = {}
    for module, name in output.names.items():
        if name in by_name:
            both = [by_name[name], module]
            raise Unnamed(
                f"modules {first_few(both)} would both be called {name!r} in {output.format}'s "
                "format",
                both,
                f"give another {_OPTION}",
            )
        by_name[name] = module
    return output


def _written(adapters: Sequence[Adapter], module: str) -> str | None:
    """The path that most of the adapters have for a module in their files, or None."""
    counts = Counter(a.modules[module].written for a in adapters if module in a.modules)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _kohya_names(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    embeddings = [module for module, layout in layouts.items() if layout.kind == "embedding"]
    if embeddings:
        raise Unnamed(
            f"kohya's format has no LoRA of an embedding: {first_few(embeddings)}",
            embeddings,
            f"give {_OPTION} peft",
        )
    own = _own(adapters, "kohya")
    few = [adapter for adapter in adapters if adapter.format == "kohya"]
    dotted = any(not is_kohya(m.written) for a in own for m in a.modules.values())
    several, names, without = _several_encoders(adapters), {}, []
    for module in layouts:
        name = _written(own, module) or kohya_spelling(module, several_encoders=several)
        name = name or _written(few, module)
        if name is None and not dotted:
            without.append(module)
        names[module] = name or module
    if without:
        raise Unnamed(
            "kohya's format needs the part of a pipeline (unet, transformer, text_encoder) before "
            f"every module: {first_few(without)}",
            without,
            f"give {_OPTION} peft",
        )
    return names


def _several_encoders(adapters: Sequence[Adapter]) -> bool:
    """Whether kohya's names tell a first text encoder from a second one: at least half of the
    adapters of an encoder's modules have some of the second's, or a `transformer` beside them."""
    first, second = ("text_encoder.", "lora_te_", "lora_te1_"), ("text_encoder_2.", "lora_te2_")
    more = (*second, "transformer.", "lora_transformer_")
    two = sum(any(m.startswith(more) for m in a.modules) for a in adapters)
    some = sum(any(m.startswith(first + second) for m in a.modules) for a in adapters)
    return 0 < some <= 2 * two


def _dotted(
    adapters: Sequence[Adapter], layouts: Mapping[str, Layout], format_: Format
) -> dict[str, str]:
    """Every module's dotted path.

    Raises:
        Unnamed: some have kohya's name only, and of a model whose words are not known.
    """
    others = [adapter for adapter in adapters if adapter.format != "kohya"]
    found = {m: dotted_spelling(m) or _written(others, m) for m in layouts}
    without = [module for module, name in found.items() if name is None]
    if without:
        raise Unnamed(
            "which underscores of kohya's names are dots can't be told, so these modules can't be "
            f"written in {format_}'s format: {first_few(without)}",
            without,
            f"give {_OPTION} kohya",
        )
    return {module: name for module, name in found.items() if name is not None}


def _diffusers_names(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    names = _dotted(adapters, layouts, "diffusers")
    without = [module for module, name in names.items() if not split_part(name)[0]]
    if without:
        raise Unnamed(
            "diffusers' format needs the part of a pipeline (unet, transformer, text_encoder) in "
            f"front of every module: {first_few(without)}",
            without,
            f"give {_OPTION} peft",
        )
    return names


def _peft_names(
    adapters: Sequence[Adapter], own: Sequence[Adapter], layouts: Mapping[str, Layout]
) -> dict[str, str]:
    """Paths in one model: a PEFT folder is loaded on it, not on a pipeline of several."""
    names = {module: _written(own, module) for module in layouts}
    rest = {module: layouts[module] for module, name in names.items() if name is None}
    others = _dotted(adapters, rest, "peft")
    kept = {split_part(name)[0] for name in names.values() if name is not None}
    parts = {split_part(name)[0] for name in others.values()}
    home = _home(adapters, names)
    foreign = [m for m, name in others.items() if split_part(name)[0] not in home]
    if (not kept and len(parts) > 1) or (kept == {""} and home and foreign):
        raise Unnamed(
            f"PEFT's format is that of one model, and the modules are of several: "
            f"{first_few(parts | home - {''})}",
            foreign,
            f"give {_OPTION} diffusers or kohya",
        )
    strip = not kept - {""}
    return {
        module: name or (split_part(others[module])[1] if strip else others[module])
        for module, name in names.items()
    }


def _home(adapters: Sequence[Adapter], names: Mapping[str, str | None]) -> set[str]:
    """The part of a pipeline whose modules PEFT's files name without it, as the other clients
    have them; of several the most common one."""
    counts: Counter[str] = Counter()
    for adapter in adapters:
        for module, entry in adapter.modules.items():
            name = names.get(module)
            if name is not None and not split_part(name)[0]:
                counts[split_part(dotted_spelling(entry.written) or "")[0]] += 1
    del counts[""]
    return {max(sorted(counts), key=counts.__getitem__), ""} if counts else set()


def _by_part(config: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """A config for each part of the pipeline, its fields behind the part's name."""
    fields: dict[str, object] = {}
    for part in sorted({split_part(name)[0] for name in names}):
        targets = sorted(path for first, path in map(split_part, names) if first == part)
        own = {**config, "target_modules": targets}
        fields |= {f"{part}.{name}": value for name, value in own.items()}
    return fields
