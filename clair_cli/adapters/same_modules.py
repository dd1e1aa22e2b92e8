"""One name for each module of a cohort whose clients call it by several.

Names are the same module's when they are equal but for
- what a pipeline's file puts in front: `unet.`, `transformer.` or `diffusion_model.`, and
  `text_encoder.`, `text_encoder_2.`, `text_encoder_3.`; one client may have it and another not;
- kohya's spelling: `lora_unet_` and `lora_te_`, `lora_te1_`, `lora_te2_`, `lora_te3_` for those,
  and underscores for dots (several dotted names could have one such spelling: it is that of the
  one that most clients have);
- a `module` among the dotted parts, which DataParallel inserts;
- the `text_model` in front of a text encoder's layers, which transformers 5 no longer has.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clair_cli.adapters.adapter import Adapter
from clair_cli.remark import Remark, note
from clair_cli.text import first_few, quoted

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
_TEXT_MODEL = re.compile(r"^text_model[._](?=encoder[._]layers[._])")
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


def unify_names(adapters: Sequence[Adapter]) -> tuple[tuple[Adapter, ...], tuple[Remark, ...]]:
    """The same adapters with one name for each module, and remarks.

    It is the name that most clients use; of equally common names the dotted one. One client never
    decides a name.

    Returns:
        `(adapters, notes)`, in the given order; an adapter whose names stay is the same object.
    """
    if len({frozenset(adapter.modules) for adapter in adapters}) < 2:
        return tuple(adapters), ()
    places = _places(adapters)
    spelled = _spellings(places)
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
    text = f"modules of {first_few(changed)} go by the others' names: {example}"
    return tuple(result), (note("modules_renamed", text),)


def is_kohya(name: str) -> bool:
    """Whether a module's name is kohya's spelling.

    >>> is_kohya("lora_unet_mid_block"), is_kohya("unet.mid_block")
    (True, False)
    """
    return _KOHYA.fullmatch(name) is not None


def kohya_spelling(name: str, *, several_encoders: bool) -> str | None:
    """kohya's spelling of a dotted name; None if it begins with no part of a pipeline. A text
    encoder's layers have `text_model` in front, whatever the version of transformers: ComfyUI finds
    no others (comfy/lora.py, `model_lora_keys_clip`).

    >>> kohya_spelling("text_encoder.layers.0.q", several_encoders=False)
    'lora_te_layers_0_q'
    >>> kohya_spelling("text_encoder.encoder.layers.0.mlp.fc1", several_encoders=True)
    'lora_te1_text_model_encoder_layers_0_mlp_fc1'
    """
    if is_kohya(name):
        return name
    first, _, rest = name.partition(".")
    part = _DOTTED.get(first, "")
    if not part or not rest:
        return None
    if part == "te1" and not several_encoders:
        part = "te"
    if first == "transformer":
        part = first
    if part.startswith("te") and rest.startswith("encoder.layers."):
        rest = f"text_model.{rest}"
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
    first = match[1] if match[1] in _DOTTED else first
    return f"{first}.{'.'.join(words)}"


def split_part(name: str) -> Place:
    """The first name of a pipeline's file and the path behind it: ("unet", "mid_block.conv")."""
    first, _, rest = name.partition(".")
    return (first, rest) if first in _DOTTED and rest else ("", name)


def _place(name: str) -> Place:
    match = _KOHYA.fullmatch(name)
    if match:
        return _KOHYA_PARTS.get(match[1], match[1]), _TEXT_MODEL.sub("", match[2])
    first, _, rest = name.partition(".")
    part = _DOTTED.get(first, "") if rest else ""
    path = rest if part else name
    path = ".".join(p for p in path.split(".") if p != "module") or path
    return part, _TEXT_MODEL.sub("", path)


def _places(adapters: Sequence[Adapter]) -> list[dict[str, Place]]:
    """Every adapter's names with their places; a client without parts gets the one it fits best.

    Parts in which equally many clients have the same paths are taken for one, unless some client
    has a path in two of them: one client's name for a part does not separate the others.
    """
    found = [{name: _place(name) for name in adapter.modules} for adapter in adapters]
    bare = [own for own in found if own and not any(part for part, _ in own.values())]
    sets = _path_sets(found)
    best: dict[frozenset[str], str | None] = {}
    for own in bare:
        paths = frozenset(_flat(path) for _, path in own.values())
        if paths not in best:
            equal = _most(Counter({part: _clients(paths, sets[part]) for part in sorted(sets)}))
            if len(equal) > 1 and _apart(found, equal):
                for other in found:
                    other.update({n: (equal[0], p[1]) for n, p in other.items() if p[0] in equal})
                best = {key: equal[0] if was in equal else was for key, was in best.items()}
                sets = _path_sets(found)
            fit = Counter({part: _shared(paths, sets[part]) for part in sorted(sets)})
            most = _most(fit)
            best[paths] = most[0] if len(most) == 1 else None
    for own in bare:
        part = best[frozenset(_flat(path) for _, path in own.values())]
        if part is not None:
            own.update({name: (part, path) for name, (_, path) in own.items()})
    return found


def _path_sets(found: Iterable[Mapping[str, Place]]) -> dict[str, Counter[frozenset[str]]]:
    """Part to the sets of paths that clients have in it, and how many clients have each."""
    result: dict[str, Counter[frozenset[str]]] = defaultdict(Counter)
    for own in found:
        for part in {part for part, _ in own.values()} - {""}:
            result[part][frozenset(_flat(p) for q, p in own.values() if q == part)] += 1
    return result


def _clients(paths: frozenset[str], sets: Counter[frozenset[str]]) -> int:
    """How many clients have some of the paths."""
    return sum(n for own, n in sets.items() if not paths.isdisjoint(own))


def _shared(paths: frozenset[str], sets: Counter[frozenset[str]]) -> int:
    """How many of the paths all clients have, added up."""
    return sum(n * len(paths & own) for own, n in sets.items())


def _apart(found: Iterable[Mapping[str, Place]], parts: Sequence[str]) -> bool:
    """Whether no client has one path in two of the parts."""
    for own in found:
        paths = [_flat(path) for part, path in own.values() if part in parts]
        if len(set(paths)) < len(paths):
            return False
    return True


def _most(counts: Counter[Any]) -> list[Any]:
    """The items of the highest count, sorted; none if all counts are 0."""
    most = max(counts.values(), default=0)
    return sorted(item for item, count in counts.items() if count == most > 0)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _spellings(places: Sequence[Mapping[str, Place]]) -> Mapping[Place, Place]:
    """kohya's place to the dotted place that most clients have. Equally common dotted places are
    taken for one, unless some client has two of them: one client's spelling does not separate the
    others."""
    clients = [set(own.values()) for own in places]
    by_flat: dict[Place, Counter[Place]] = defaultdict(Counter)
    for own in clients:
        for part, path in own:
            by_flat[part, _flat(path)][part, path] += 1
    result: dict[Place, Place] = {}
    for flat, spelled in by_flat.items():
        equal = _most(Counter({p: n for p, n in spelled.items() if "." in p[1]}))
        if flat in spelled and equal and all(len(own & set(equal)) < 2 for own in clients):
            result |= dict.fromkeys([flat, *equal], equal[0])
    return result


def _best(counts: Counter[str]) -> str:
    """The most common, then a dotted one, then the first in order."""
    return min(counts, key=lambda name: (-counts[name], is_kohya(name), name))


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    modules = {names[old]: replace(m, name=names[old]) for old, m in adapter.modules.items()}
    return replace(adapter, modules=dict(sorted(modules.items())))
