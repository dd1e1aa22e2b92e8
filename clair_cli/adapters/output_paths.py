"""The path of each module in a file of one format: as most clients have it, or spelt anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.names.pair import DENOISER
from clair_cli.adapters.names.parts import Format
from clair_cli.adapters.same_modules import dotted_spelling, is_kohya, kohya_spelling, split_part
from clair_cli.errors import UsageError
from clair_cli.text import first_few, quoted

OPTION = "--tensor-names"

# Blocks that only one part of a pipeline has: diffusers' U-Nets (models/unets) and transformers
# (models/transformers). diffusers' files of 2023, and PEFT's of one model, have no part in front.
_PART_OF = {
    "down_blocks": "unet",
    "mid_block": "unet",
    "up_blocks": "unet",
    "transformer_blocks": "transformer",
    "single_transformer_blocks": "transformer",
}


_DENOISERS = ("transformer", "unet", "diffusion_model")


class NamelessModules(UsageError):
    """Modules that have no name in a format.

    Attributes:
        modules: all such modules; perhaps only a few clients have them.
        hint: set by `choose_output`, which knows the formats that have names for all modules.
    """

    def __init__(self, message: str, modules: Sequence[str]) -> None:
        super().__init__(message)
        self.modules = tuple(modules)

    def minority(self, adapters: Sequence[Adapter]) -> dict[str, tuple[Adapter, ...]]:
        """The modules that fewer than half of the adapters have, each with those adapters."""
        held = {m: tuple(a for a in adapters if m in a.modules) for m in self.modules}
        return {m: few for m, few in held.items() if few and 2 * len(few) < len(adapters)}


def module_paths(
    format_: Format, adapters: Sequence[Adapter], layouts: Mapping[str, Layout]
) -> dict[str, str]:
    """The path of every module in a file of a format.

    Args:
        adapters: at least one.
        layouts: of every module that may be written.

    Raises:
        NamelessModules: a module has no name in the format, or two have the same.
    """
    fused = {n for a in adapters for n, m in a.modules.items() if m.expert is not None}
    if format_ != "peft" and (named := sorted(fused & layouts.keys())):
        raise NamelessModules(
            f"{format_}'s format has no fused experts: {first_few(named)}",
            named,
        )
    paths = _PATHS[format_](adapters, layouts)
    by_path: dict[str, str] = {}
    for module, path in paths.items():
        if path in by_path:
            both = [by_path[path], module]
            raise NamelessModules(
                f"modules {first_few(both)} would both be called {quoted(path)} in {format_}'s "
                "format",
                both,
            )
        by_path[path] = module
    return paths


def adapters_of(adapters: Sequence[Adapter], format_: Format) -> list[Adapter]:
    """The adapters of a format, whose paths are written as they are; none if another format is more
    common, so that few clients' paths do not decide. PEFT's paths and mlx-lm's are the same."""
    kinds: dict[Format, Format] = {"mlx": "peft"}
    every = [kinds.get(adapter.format, adapter.format) for adapter in adapters]
    wanted, counts = kinds.get(format_, format_), Counter(every)
    if counts[wanted] < max(counts.values()):
        return []
    return [adapter for adapter, kind in zip(adapters, every, strict=True) if kind == wanted]


def _written(adapters: Sequence[Adapter], module: str) -> str | None:
    """The most common path of a module in the adapters' files; None if no adapter has it."""
    counts = Counter(a.modules[module].written for a in adapters if module in a.modules)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _kohya_paths(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    embeddings = [module for module, layout in layouts.items() if layout.kind == "embedding"]
    if embeddings:
        raise NamelessModules(
            f"kohya's format has no LoRA of an embedding: {first_few(embeddings)}",
            embeddings,
        )
    own = adapters_of(adapters, "kohya")
    few = [adapter for adapter in adapters if adapter.format == "kohya"]
    dotted = any(not is_kohya(m.written) for a in own for m in a.modules.values())
    several, names, without = _several_encoders(adapters), {}, []
    for module in layouts:
        name = _written(own, module)
        name = name or kohya_spelling(with_part(module), several_encoders=several)
        name = name or _written(few, module)
        if name is None and not dotted:
            without.append(module)
        names[module] = name or module
    if without:
        raise NamelessModules(
            "kohya's format needs the part of a pipeline (unet, transformer, text_encoder) before "
            f"every module: {first_few(without)}",
            without,
        )
    return names


def with_part(name: str) -> str:
    """A dotted path with the part of a pipeline in front, where its first block tells which.

    >>> with_part("mid_block.attentions.0.proj_in"), with_part("model.layers.0")
    ('unet.mid_block.attentions.0.proj_in', 'model.layers.0')
    """
    part = _PART_OF.get(name.partition(".")[0])
    return name if part is None else f"{part}.{name}"


def _several_encoders(adapters: Sequence[Adapter]) -> bool:
    """Whether kohya's names number the text encoders: at least half of the adapters with modules of
    an encoder have modules of a second one, or of a `transformer`, too."""
    first, second = ("text_encoder.", "lora_te_", "lora_te1_"), ("text_encoder_2.", "lora_te2_")
    more = (*second, "transformer.", "lora_transformer_")
    two = sum(any(m.startswith(more) for m in a.modules) for a in adapters)
    some = sum(any(m.startswith(first + second) for m in a.modules) for a in adapters)
    return 0 < some <= 2 * two


def _dotted(
    adapters: Sequence[Adapter], layouts: Mapping[str, Layout], format_: Format
) -> dict[str, str]:
    """Every module's dotted path, with its part of a pipeline where that is known.

    Raises:
        NamelessModules: some have kohya's name only, and of a model whose words are not known.
    """
    others = [adapter for adapter in adapters if adapter.format != "kohya"]
    found = {m: dotted_spelling(m) or _written(others, m) for m in layouts}
    without = [module for module, name in found.items() if name is None]
    if without:
        raise NamelessModules(
            "which underscores of kohya's names are dots can't be told, so these modules can't be "
            f"written in {format_}'s format: {first_few(without)}",
            without,
        )
    return {module: with_part(name) for module, name in found.items() if name is not None}


def _diffusers_paths(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    """Paths in a pipeline. Its denoiser has one name in a file, the most common: diffusers converts
    all tensors' names where one has `diffusion_model` in front, and finds none of another."""
    names = _dotted(adapters, layouts, "diffusers")
    if not any(split_part(n)[0] for n in names.values()) and any(map(DENOISER.search, layouts)):
        return {module: f"transformer.{name}" for module, name in names.items()}  # of one model
    parts = Counter(split_part(name)[0] for name in names.values())
    denoisers = [part for part in _DENOISERS if parts[part]]
    if len(denoisers) > 1:
        most = max(denoisers, key=parts.__getitem__)
        for module, name in names.items():
            part, path = split_part(name)
            names[module] = f"{most}.{path}" if part in denoisers else name
    without = [module for module, name in names.items() if not split_part(name)[0]]
    if without:
        raise NamelessModules(
            "diffusers' format needs the part of a pipeline (unet, transformer, text_encoder) in "
            f"front of every module: {first_few(without)}",
            without,
        )
    return names


def _peft_paths(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    """Paths in one model: a PEFT folder is loaded on it, not on a pipeline of several."""
    own = adapters_of(adapters, "peft")
    names = {module: _written(own, module) for module in layouts}
    rest = {module: layouts[module] for module, name in names.items() if name is None}
    others = _dotted(adapters, rest, "peft")
    kept = {split_part(name)[0] for name in names.values() if name is not None}
    parts = {split_part(name)[0] for name in others.values()}
    home = _home(adapters, names)
    foreign = [m for m, name in others.items() if split_part(name)[0] not in home]
    if (not kept and len(parts) > 1) or (kept == {""} and home and foreign):
        raise NamelessModules(
            f"PEFT's format is that of one model, and the modules are of several: "
            f"{first_few(parts | home - {''})}",
            foreign,
        )
    strip = not kept - {""}
    return {
        module: name or (split_part(others[module])[1] if strip else others[module])
        for module, name in names.items()
    }


def _mlx_paths(adapters: Sequence[Adapter], layouts: Mapping[str, Layout]) -> dict[str, str]:
    kernels = [module for module, layout in layouts.items() if layout.kind == "convolution"]
    if kernels:
        text = f"mlx-lm's format has no LoRA of a convolution: {first_few(kernels)}"
        raise NamelessModules(text, kernels)
    return _peft_paths(adapters, layouts)


def _home(adapters: Sequence[Adapter], names: Mapping[str, str | None]) -> set[str]:
    """The part of a pipeline that PEFT's files leave out of their paths, by other clients' paths of
    the same modules (the most common part), and ""; empty if it is not known."""
    counts: Counter[str] = Counter()
    for adapter in adapters:
        for module, entry in adapter.modules.items():
            name = names.get(module)
            if name is not None and not split_part(name)[0]:
                counts[split_part(with_part(dotted_spelling(entry.written) or ""))[0]] += 1
    del counts[""]
    return {max(sorted(counts), key=counts.__getitem__), ""} if counts else set()


_PATHS: dict[Format, Callable[[Sequence[Adapter], Mapping[str, Layout]], dict[str, str]]] = {
    "peft": _peft_paths,
    "diffusers": _diffusers_paths,
    "kohya": _kohya_paths,
    "mlx": _mlx_paths,
}
