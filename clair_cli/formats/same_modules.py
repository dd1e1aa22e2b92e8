"""One name for each module of a cohort whose clients call it by several.

Names are the same module's when they are equal but for
- what a pipeline's file puts in front: `unet.`, `transformer.` or `diffusion_model.`, and
  `text_encoder.`, `text_encoder_2.`, `text_encoder_3.`; one client may have it and another not;
- kohya's spelling: `lora_unet_` and `lora_te_`, `lora_te1_`, `lora_te2_`, `lora_te3_` for those,
  and underscores for dots (several dotted names could have one such spelling: it is that of the
  one that most clients have);
- a `module` among the dotted parts, which DataParallel inserts.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clair_cli.formats.adapter import Adapter
from clair_cli.formats.key_map import first_few
from clair_cli.formats.strict_json import quoted

# Part of a pipeline by the name that begins a dotted path, and by kohya's.
_DOTTED = {
    "unet": "unet",
    "transformer": "unet",
    "diffusion_model": "unet",
    "text_encoder": "te1",
    "text_encoder_2": "te2",
    "text_encoder_3": "te3",
}
_KOHYA = re.compile(r"lora_(unet|transformer|te[123]?)_([^.]+)")
_KOHYA_PARTS = {"unet": "unet", "transformer": "unet", "te": "te1"}
# Names with underscores, and the others, in the paths of Stable Diffusion's U-Net and encoders.
_WORDS = frozenset(
    (
        *("down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "conv", "conv1"),
        *("conv2", "conv_in", "conv_out", "conv_shortcut", "downsamplers", "upsamplers"),
        *("time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2"),
        *("transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net"),
        *("proj", "proj_in", "proj_out", "text_model", "encoder", "layers", "self_attn"),
        *("q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2", "text_projection"),
    )
)

Place = tuple[str, str]  # part of the pipeline or "", and the path in it


def unify_names(adapters: Sequence[Adapter]) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """The same adapters with one name for each module, and remarks.

    It is the one that most clients use, of equally common ones the dotted one: what one client
    calls a module never decides.

    Returns:
        `(adapters, notes)`, in the given order; an adapter whose names stay is the same object.
    """
    if len({frozenset(adapter.modules) for adapter in adapters}) < 2:
        return tuple(adapters), ()
    places = _places(adapters)
    spelled = _spellings(place for own in places for place in own.values())
    names: dict[Place, Counter[str]] = defaultdict(Counter)
    for own in places:
        for name, place in own.items():
            own[name] = place = spelled.get(place, place)
            names[place][name] += 1
    chosen = {place: _best(counts) for place, counts in names.items()}
    result, changed = [], {}
    for adapter, own in zip(adapters, places, strict=True):
        new = {name: chosen[place] for name, place in own.items()}
        other = sorted(name for name in new if new[name] != name)
        if len(set(new.values())) < len(new) or not other:
            result.append(adapter)
            continue
        result.append(_renamed(adapter, new))
        changed[adapter.name] = f"{quoted(other[0])} is {quoted(new[other[0]])}"
    if not changed:
        return tuple(result), ()
    example = next(iter(changed.values()))
    return tuple(result), (f"modules of {first_few(changed)} go by the others' names: {example}",)


def is_kohya(name: str) -> bool:
    """Whether a module's name is kohya's spelling.

    >>> is_kohya("lora_unet_mid_block"), is_kohya("unet.mid_block")
    (True, False)
    """
    return _KOHYA.fullmatch(name) is not None


def kohya_spelling(name: str, *, several_encoders: bool) -> str | None:
    """kohya's spelling of a dotted name; None if it begins with no part of a pipeline.

    >>> kohya_spelling("text_encoder.layers.0.q", several_encoders=False)
    'lora_te_layers_0_q'
    """
    if is_kohya(name):
        return name
    first, _, rest = name.partition(".")
    part = _DOTTED.get(first, "")
    if not part or not rest:
        return None
    if part == "te1" and not several_encoders:
        part = "te"
    return f"lora_{part}_{rest.replace('.', '_')}"


def dotted_spelling(name: str) -> str | None:
    """The dotted path of kohya's spelling, where all of it is words of Stable Diffusion's models.

    >>> dotted_spelling("lora_unet_down_blocks_0_attentions_1_proj_in")
    'unet.down_blocks.0.attentions.1.proj_in'
    """
    match = _KOHYA.fullmatch(name)
    if match is None:
        return name
    tokens, words = match[2].split("_"), []
    while tokens:
        for count in (3, 2, 1):
            word = "_".join(tokens[:count])
            if len(tokens) >= count and (word in _WORDS or (count == 1 and word.isdecimal())):
                words.append(word)
                del tokens[:count]
                break
        else:
            return None
    part = _KOHYA_PARTS.get(match[1], match[1])
    first = next(dotted for dotted, known in _DOTTED.items() if known == part)
    return f"{first}.{'.'.join(words)}"


def split_part(name: str) -> Place:
    """The first name of a pipeline's file and the path behind it: ("unet", "mid_block.conv")."""
    first, _, rest = name.partition(".")
    return (first, rest) if first in _DOTTED and rest else ("", name)


def _place(name: str) -> Place:
    match = _KOHYA.fullmatch(name)
    if match:
        return _KOHYA_PARTS.get(match[1], match[1]), match[2]
    first, _, rest = name.partition(".")
    part = _DOTTED.get(first, "") if rest else ""
    path = rest if part else name
    return part, ".".join(p for p in path.split(".") if p != "module") or path


def _places(adapters: Sequence[Adapter]) -> list[dict[str, Place]]:
    """Every adapter's names with their places; a client without parts gets the one it fits best."""
    found = [{name: _place(name) for name in adapter.modules} for adapter in adapters]
    by_part: dict[str, Counter[str]] = defaultdict(Counter)
    for own in found:
        for part, path in own.values():
            if part:
                by_part[part][_flat(path)] += 1
    for own in found:
        if any(part for part, _ in own.values()):
            continue
        paths = {_flat(path) for _, path in own.values()}
        fit = Counter({part: sum(known[p] for p in paths) for part, known in by_part.items()})
        best = _leader(fit)
        if best is not None:
            for name, (_, path) in own.items():
                own[name] = best, path
    return found


def _leader(counts: Counter[str] | Counter[Place]) -> Any:
    """What is counted most, or None if it is nothing or two are equal."""
    (first, most), *rest = [*counts.most_common(2), (None, 0), (None, 0)][:2]
    return first if most > rest[0][1] else None


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _spellings(places: Iterable[Place]) -> Mapping[Place, Place]:
    """kohya's place to the dotted one that most clients have."""
    by_flat: dict[Place, Counter[Place]] = defaultdict(Counter)
    for part, path in places:
        by_flat[part, _flat(path)][part, path] += 1
    result = {}
    for flat, spelled in by_flat.items():
        dotted = _leader(Counter({p: n for p, n in spelled.items() if "." in p[1]}))
        if flat in spelled and dotted is not None:
            result[flat] = dotted
    return result


def _best(counts: Counter[str]) -> str:
    """The most common, then a dotted one, then the first in order."""
    return min(counts, key=lambda name: (-counts[name], is_kohya(name), name))


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    modules = {names[old]: replace(m, name=names[old]) for old, m in adapter.modules.items()}
    return replace(adapter, modules=dict(sorted(modules.items())))
