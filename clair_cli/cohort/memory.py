"""Adapters in memory, under the same checks as files."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.config import parse_config
from clair_cli.adapters.config_source import inside_config
from clair_cli.adapters.names.pair import pair_keys
from clair_cli.adapters.read import build_adapter
from clair_cli.adapters.write import config_json, safetensors_bytes
from clair_cli.cohort.client_names import similar_names
from clair_cli.cohort.model import Cohort, Rejection, rejection
from clair_cli.errors import InputRefused, RejectedClient
from clair_cli.formats.files import FAILURES, as_rejection
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.safetensors.elements import look_at
from clair_cli.formats.safetensors.source import TensorEntry, digest_of
from clair_cli.formats.safetensors.writer import DTYPE_NAMES, memory_of
from clair_cli.formats.strict_json import check_depth
from clair_cli.text import quoted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorsInMemory:
    """A state dict as a `TensorSource`. The caller's tensors are not copied.

    Attributes:
        state: name to a dense tensor with values, on any device.
        tensors: see `TensorSource`.
    """

    state: Mapping[str, Tensor]
    tensors: Mapping[str, TensorEntry]

    def raw(self, *keys: str) -> memoryview:
        """See `TensorSource.raw`; the caller may have written to a tensor, so each read compares
        its digest."""
        parts = [memory_of(self.state[key]) for key in keys]
        for key, part in zip(keys, parts, strict=True):
            if digest_of(part) != self.tensors[key].digest:
                raise RejectedClient(f"tensor {quoted(key)} changed while reading")
        return parts[0] if len(parts) == 1 else memoryview(bytearray().join(parts))

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """See `TensorSource.part`."""
        return memory_of(self.state[key])[begin:end]


def adapters_from_memory(
    clients: Mapping[str, tuple[Mapping[str, Tensor], Any]], *, limits: Limits | None = None
) -> Cohort:
    """Check state dicts as `load_client` checks files.

    Args:
        clients: name to `(state dict, config)`. The state dict has LoRA tensors, of torch or numpy,
            and what was trained as a whole beside them, under the names of any format that files
            may have; the config is a mapping of fields or anything with `to_dict()`, as
            `peft.LoraConfig`, or None where the tensors say the scale (kohya, diffusers).
        limits: default `Limits()`.

    Returns:
        A cohort with empty paths; one bad client is a rejection. `sha256` is that of the
        tensors as a canonical safetensors file followed by the config as canonical JSON.

    Raises:
        InputRefused: no client, or more than `limits.max_clients`.
    """
    limits = limits or Limits()
    if not clients:
        raise InputRefused("no client given")
    if len(clients) > limits.max_clients:
        raise InputRefused(
            f"{len(clients):,} clients, above the limit of {limits.max_clients:,}",
            hint=remedy("clients"),
        )
    adapters: list[Adapter] = []
    rejected: list[Rejection] = []
    for name in sorted(clients, key=os.fsencode):
        try:
            state, config = _pair(clients[name])
            adapters.append(_adapter(name, state, config, limits))
        except FAILURES as error:
            rejected.append(rejection(as_rejection(error, ""), name, ""))
    return Cohort(tuple(adapters), tuple(rejected), notes=tuple(similar_names(clients)))


def _pair(client: Any) -> tuple[Any, Any]:
    if not isinstance(client, (tuple, list)) or len(client) != 2:
        raise RejectedClient("is not a pair of state dict and config")
    if isinstance(client[0], RejectedClient):
        raise client[0]
    return client[0], client[1]


def _adapter(name: str, state: Any, config: Any, limits: Limits) -> Adapter:
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise RejectedClient(f"{kind} is no state dict", found=kind, expected="a state dict")
    if len(state) > limits.max_tensors:
        raise RejectedClient(
            f"{len(state):,} tensors, above the limit of {limits.max_tensors:,}",
            hint=remedy("tensors"),
        )
    tensors = {key: _as_tensor(value) for key, value in state.items()}
    entries = {key: _entry(key, tensors[key], limits) for key in sorted(tensors, key=str)}
    keys = pair_keys({key: entry.shape for key, entry in entries.items()})
    if config is None and not keys.scale_inside:
        raise RejectedClient("no adapter config, so the scale is unknown", found="no config")
    parsed, notes, text = *inside_config(keys), ""
    if config is not None:
        try:
            fields = plain_config(config)
            parsed, notes = parse_config(fields), ()
        except RejectedClient:
            raise
        except Exception as error:  # of any kind: `to_dict` is another library's
            raise RejectedClient(f"adapter config can't be read: {error}") from None
        try:
            text = config_json(fields)
        except (TypeError, ValueError) as error:
            raise RejectedClient(f"adapter config can't be written as JSON: {error}") from None
    data = safetensors_bytes(tensors, {}) + text.encode("utf-8")
    source = TensorsInMemory(tensors, entries)
    sha256 = hashlib.sha256(data).hexdigest()
    return build_adapter(name, "", sha256, source, keys, parsed, limits, notes=notes)


def plain_config(config: Any) -> Any:
    """A config's fields as JSON has them.

    Args:
        config: a mapping, or anything with `to_dict()`.

    Raises:
        ValueError: nested too deeply. Whatever `to_dict` raises.
    """
    given = config.to_dict() if hasattr(config, "to_dict") else config
    check_depth(given)
    return _plain(given)


def _as_tensor(value: Any) -> Any:
    """A numpy array as a tensor, which shares its memory if possible; another value as it is."""
    import numpy
    import torch

    if not isinstance(value, (numpy.ndarray, numpy.generic)):
        return value
    array = numpy.asarray(value)
    if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError:  # a dtype that torch has not
        return value


def _entry(key: str, tensor: Tensor, limits: Limits) -> TensorEntry:
    import torch

    if not isinstance(key, str) or len(key) > limits.max_name_chars:
        raise RejectedClient(f"tensor name {quoted(key)} is not a name")
    dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not dense or tensor.is_meta or tensor.is_nested:
        raise RejectedClient(f"tensor {quoted(key)} is not a dense tensor with values")
    shape, dtype = tuple(tensor.shape), DTYPE_NAMES.get(str(tensor.dtype))
    if dtype is None:
        raise RejectedClient(
            f"tensor {quoted(key)} has dtype {tensor.dtype}, expected F32, F16, BF16 or F64",
            found=str(tensor.dtype),
            expected="F32, F16, BF16 or F64",
        )
    if 0 in shape:
        raise RejectedClient(f"tensor {quoted(key)}: shape {shape} has an axis of length 0")
    data = memory_of(tensor)
    count, first, exponent = look_at(data, dtype)
    return TensorEntry(key, dtype, shape, 0, len(data), digest_of(data), count, first, exponent)


def _plain(value: Any) -> Any:
    """Enums to their values and sets to sorted lists, as PEFT's own saving does."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
