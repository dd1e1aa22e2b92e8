"""PEFT's tensor names, as saved and as dumped from memory: `<module>.lora_A[.<name>].weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clair_cli.errors import RejectedClient
from clair_cli.formats.key_map import KeyMap, KeyPair, first_few
from clair_cli.formats.strict_json import quoted

PREFIX = "base_model.model."

# Parts that torch.compile, FSDP and activation checkpointing insert anywhere in a name.
_WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")


def peft_keys(shapes: Mapping[str, tuple[int, ...]]) -> KeyMap | None:
    """Pair `lora_A` with `lora_B` where every tensor of the file is one of the two.

    Args:
        shapes: tensor name to shape, at least one.

    Returns:
        None if some tensor is something else; the recognisers of other formats then say what.

    Raises:
        RejectedClient: all tensors are factors, but one is unpaired, double, not a matrix, or
            of a second adapter.
    """
    sides: dict[tuple[str, str], str] = {}
    adapters: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for key in shapes:
        prefix, plain = strip_wrappers(key)
        match = _FACTOR.fullmatch(plain)
        if match is None:
            return None
        module, side = match["module"], match["side"]
        if "base_layer" in module.split("."):
            return None  # chained layers of target_parameters
        adapters.setdefault(match["adapter"] or "", key)
        prefixes.setdefault(prefix, key)
        if (module, side) in sides:
            raise RejectedClient(
                f"two tensors for one lora_{side}: {first_few([sides[module, side], key])}",
                module=module,
            )
        sides[module, side] = key
    _check_one(adapters, "two adapters in one file")
    _check_one(prefixes, f"some tensor names begin with {PREFIX!r} and some do not")
    pairs = _pair(sides)
    for pair in pairs:
        _check_axes(pair, shapes)
    return KeyMap(next(iter(prefixes)), pairs)


def strip_wrappers(key: str) -> tuple[str, str]:
    """`(prefix, rest)` of a tensor name, without the parts that wrappers insert.

    `module.` (DataParallel, DeepSpeed) is taken off the front only: inside a path it may be
    the model's own.

    >>> strip_wrappers("module.base_model.model._orig_mod.layers.0.q.lora_A.weight")
    ('base_model.model.', 'layers.0.q.lora_A.weight')
    """
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    rest = ".".join(parts).removeprefix("module.")
    if not rest.startswith(PREFIX):
        return "", rest
    return PREFIX, rest.removeprefix(PREFIX).removeprefix("module.")


def _check_one(found: Mapping[str, str], what: str) -> None:
    if len(found) > 1:
        names = ", ".join(f"{quoted(name)} ({quoted(key)})" for name, key in sorted(found.items()))
        raise RejectedClient(f"{what}: {names}", found=names, expected="one")


def _pair(sides: Mapping[tuple[str, str], str]) -> tuple[KeyPair, ...]:
    pairs = []
    for module in sorted({module for module, _ in sides}):
        for side, other in (("A", "B"), ("B", "A")):
            if (module, side) not in sides:
                raise RejectedClient(
                    f"lora_{other} has no lora_{side} beside it ({quoted(sides[module, other])})",
                    module=module,
                    found=f"lora_{other} alone",
                    expected="lora_A and lora_B",
                )
        pairs.append(KeyPair(module, sides[module, "A"], sides[module, "B"]))
    return tuple(pairs)


def _check_axes(pair: KeyPair, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key in (pair.key_A, pair.key_B):
        axes = len(shapes[key])
        if axes != 2:
            kind = "LoRA of a convolution is not supported: " if 3 <= axes <= 5 else ""
            raise RejectedClient(
                f"{kind}tensor {quoted(key)} has {axes} axes, shape {shapes[key]}",
                module=pair.module,
                found=f"{axes} axes",
                expected="2 axes",
            )
