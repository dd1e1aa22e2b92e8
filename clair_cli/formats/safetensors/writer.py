"""Write a safetensors file tensor by tensor, hashed on the way.

No bytes are copied: a file is a sequence of parts, which share memory with the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from clair_cli.formats.safetensors.header import METADATA
from clair_cli.formats.safetensors.source import INTEGER_DTYPES, TORCH_DTYPES

if TYPE_CHECKING:
    from torch import Tensor


Parts = Sequence[bytes | memoryview]
"""A file's bytes, in pieces that follow each other."""

DTYPE_NAMES = {f"torch.{name}": code for code, name in (TORCH_DTYPES | INTEGER_DTYPES).items()}
"""The header's name of a torch dtype, by its `str`."""


def memory_of(tensor: Tensor) -> memoryview:
    """A tensor's elements as bytes, in C order, little-endian.

    Args:
        tensor: dense; any shape, dtype and device.

    Returns:
        The tensor's own memory if it is contiguous and on the CPU, else a copy.
    """
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class Sink(Protocol):
    """Takes a file's bytes in order."""

    def begin(self, size: int, /) -> None:
        """Before the first byte: how many there will be."""

    def add(self, part: bytes | memoryview, /) -> None:
        """The next bytes."""

    def sha256(self) -> str:
        """Of all bytes, hex, after the last one."""


class SafetensorsParts:
    """A file whose header is known before its tensors are. Header keys are sorted; tensors lie by
    falling element size and then by name, so that each is aligned.

    Args:
        tensors: name to a tensor of the final shape and dtype (16, 32 or 64 bits, floating or
            integer); only these count, so the device may be "meta".
        metadata: string to string; left out of the header when empty.
        draft: takes the bytes in order as tensors are added; without it they are kept for `parts`.

    Attributes:
        header_bytes: of the header's text. file_bytes: of the whole file.

    Raises:
        ValueError: another dtype, or a tensor called "__metadata__".
        OutputError: there is no room for the draft.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        draft: Sink | None = None,
    ) -> None:
        sizes = {name: tensor.element_size() for name, tensor in tensors.items()}
        header: dict[str, object] = {}
        if metadata:
            header[METADATA] = dict(sorted(metadata.items()))
        self._order = sorted(tensors, key=lambda name: (-sizes[name], name))
        self._lengths: dict[str, int] = {}
        position = 0
        for name in self._order:
            dtype = DTYPE_NAMES.get(str(tensors[name].dtype))
            if dtype is None or name == METADATA:
                raise ValueError(f"can't write tensor {name!r} of dtype {tensors[name].dtype}")
            shape = list(tensors[name].shape)
            length = self._lengths[name] = math.prod(shape) * sizes[name]
            offsets = [position, position + length]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            position += length
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self.header_bytes, self.file_bytes = len(text), 8 + len(text) + position
        self._head = len(text).to_bytes(8, "little") + text
        self._found: dict[str, memoryview] = {}
        self._hash = hashlib.sha256()
        self._taken = 0
        self.sink = draft
        if draft is not None:
            draft.begin(self.file_bytes)
        self._take(self._head)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add the values of one tensor. Tensors may come in any order.

        Raises:
            ValueError: the size is not that in the header.
        """
        data = memory_of(tensor)
        if len(data) != self._lengths[name]:
            raise ValueError(f"{name!r} has {len(data)} bytes, {self._lengths[name]} expected")
        self._found[name] = data
        while self._taken < len(self._order) and self._order[self._taken] in self._found:
            name = self._order[self._taken]
            self._take(self._found[name] if self.sink is None else self._found.pop(name))
            self._taken += 1

    def _take(self, part: bytes | memoryview) -> None:
        if self.sink is None:
            self._hash.update(part)
        else:
            self.sink.add(part)

    def parts(self) -> Parts:
        """The whole file, once every tensor was added. Only without a draft."""
        return (self._head, *(self._found[name] for name in self._order))

    def sha256(self) -> str:
        """Of the whole file, hex, once every tensor was added."""
        assert self._taken == len(self._order), "tensors are missing"
        return self._hash.hexdigest() if self.sink is None else self.sink.sha256()
