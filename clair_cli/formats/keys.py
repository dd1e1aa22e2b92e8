"""Tensor names to LoRA pairs, whatever tool wrote the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clair_cli.errors import RejectedClient
from clair_cli.formats.key_map import KeyMap
from clair_cli.formats.keys_peft import peft_keys
from clair_cli.formats.keys_refused import refused_keys

FORMATS: tuple[Callable[[Mapping[str, tuple[int, ...]]], KeyMap | None], ...] = (
    peft_keys,
    refused_keys,  # last: it always raises
)
"""Recognisers, asked in this order. Each returns the pairs, None for "not mine", or raises
`RejectedClient` for "mine, but broken". A new format is one file and one line here."""


def pair_keys(shapes: Mapping[str, tuple[int, ...]]) -> KeyMap:
    """Find the pair of every module.

    Args:
        shapes: tensor name to shape.

    Raises:
        RejectedClient: no tensors, a format or variant that can't be merged, or a broken one.
    """
    if not shapes:
        raise RejectedClient("file holds no tensors", found="0 tensors", expected="LoRA pairs")
    for recognise in FORMATS:
        found = recognise(shapes)
        if found is not None:
            return found
    raise RejectedClient("tensors are not LoRA pairs")
