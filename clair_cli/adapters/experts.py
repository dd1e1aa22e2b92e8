"""Factors of fused experts: one pair of tensors for all experts of a layer, read expert by expert.

Each expert's delta weight is a plain product of its slices, so each is a module of its own, called
by the layer's path and its index: "layers.0.mlp.experts[17]". Two layouts:

    parameter  A (E * rank, in), the expert slowest; B (out, rank * E), the expert fastest
    stacked    A (E, rank, in); B (E, out, rank)

The first is PEFT's for `target_parameters` (tuners/lora/layer.py, `ParamWrapper.get_delta_weight`:
`weight_A.reshape(E, r, in)`, `weight_B.reshape(out, r, E)`, "o r e, e r i -> e o i"). Its file does
not say the number of experts: it is the rows of A over the config's rank. Of several parameters of
one layer the wrappers are nested: `experts.base_layer.lora_A` is inside `experts.lora_A`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clair_cli.adapters.config import AdapterConfig
from clair_cli.adapters.names.parts import Expert, Fusion, KeyMap, KeyPair
from clair_cli.errors import RejectedClient
from clair_cli.formats.limits import Limits, remedy
from clair_cli.formats.safetensors.source import (
    DIGEST_BYTES,
    TensorEntry,
    TensorSource,
    tensor_of,
)
from clair_cli.formats.safetensors.writer import memory_of
from clair_cli.text import first_few, quoted

if TYPE_CHECKING:
    from torch import Tensor

# Whole tensors that a source keeps in memory: those of the layer that is read, and of the one that
# another thread reads.
KEPT_TENSORS = 4
# Parameters of one layer with different ranks and scales that are told apart.
_MOST_PARAMETERS = 4
_INSIDE = re.compile(r"(\.base_layer)+$")


@dataclass(frozen=True)
class _Slice:
    """One expert's part of a whole tensor: its index, how many there are, and the axis in memory:
    0 for the slowest, -1 for the fastest."""

    key: str
    index: int
    count: int
    axis: int


class ExpertTensors:
    """A source in which each expert's factors are tensors of their own, "<tensor>[<index>]".

    Attributes:
        tensors: see `TensorSource`; the whole tensors are in it too.
    """

    def __init__(self, source: TensorSource, slices: Mapping[str, _Slice]) -> None:
        self._source, self._slices = source, slices
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        parts = {name: _entry(source.tensors[s.key], name, s) for name, s in slices.items()}
        self.tensors: Mapping[str, TensorEntry] = {**source.tensors, **parts}

    def __reduce__(self) -> tuple[type[ExpertTensors], tuple[object, ...]]:
        """Pickled without the tensors that are kept."""
        return ExpertTensors, (self._source, self._slices)

    @property
    def kept_bytes(self) -> int:
        """The most bytes that are in memory for the next experts."""
        whole = {part.key for part in self._slices.values()}
        sizes = sorted(self.tensors[key].end - self.tensors[key].begin for key in whole)
        return sum(sizes[-KEPT_TENSORS:])

    def raw(self, *keys: str) -> memoryview:
        """See `TensorSource.raw`. A whole tensor that was compared with its digest is kept for the
        next experts."""
        if not any(key in self._slices for key in keys):
            return self._source.raw(*keys)
        (key,) = keys
        part = self._slices[key]
        return memory_of(self._whole(part)[part.index])

    def part(self, key: str, begin: int, end: int) -> memoryview:
        """See `TensorSource.part`."""
        if key in self._slices:
            return self.raw(key)[begin:end]
        return self._source.part(key, begin, end)

    def _whole(self, part: _Slice) -> Tensor:
        """A whole tensor with the experts as first axis, contiguous."""
        with self._lock:
            if part.key in self._kept:
                self._kept.move_to_end(part.key)
                return self._kept[part.key]
        tensor = tensor_of(self._source, part.key)
        if part.axis == 0:
            tensor = tensor.reshape(part.count, -1)
        else:
            tensor = tensor.reshape(tensor.shape[0], -1, part.count).permute(2, 0, 1).contiguous()
        with self._lock:
            self._kept[part.key] = tensor
            while len(self._kept) > KEPT_TENSORS:
                self._kept.popitem(last=False)
        return tensor


def _entry(whole: TensorEntry, name: str, part: _Slice) -> TensorEntry:
    """An expert's tensor as an entry; its digest is that of the whole with the index."""
    if len(whole.shape) == 3:
        shape = whole.shape[1:]
    elif part.axis == 0:
        shape = (whole.shape[0] // part.count, whole.shape[1])
    else:
        shape = (whole.shape[0], whole.shape[1] // part.count)
    size = (whole.end - whole.begin) // part.count
    digest = hashlib.sha256(whole.digest + part.index.to_bytes(8, "little")).digest()
    return replace(whole, name=name, shape=shape, begin=0, end=size, digest=digest[:DIGEST_BYTES])


def expert_by_expert(
    source: TensorSource, keys: KeyMap, config: AdapterConfig, limits: Limits
) -> tuple[TensorSource, KeyMap]:
    """The source and the pairs of a file with each expert's factors as a pair of its own; both as
    they are where no factors are fused.

    Args:
        limits: of them, the number of tensors: each expert counts as two.

    Raises:
        RejectedClient: factors of parameters whose number of experts can't be told.
    """
    counts = _counts(source, keys, config)
    if not counts:
        return source, keys
    total = sum(2 * (found.count if (found := counts.get(p.module)) else 1) for p in keys.pairs)
    if total > limits.max_tensors:
        raise RejectedClient(
            f"{total:,} tensors, each expert's counted, above the limit of {limits.max_tensors:,}",
            found=f"{total:,} tensors",
            expected=f"at most {limits.max_tensors:,}",
            hint=remedy("tensors"),
        )
    slices: dict[str, _Slice] = {}
    pairs: list[KeyPair] = []
    for pair in keys.pairs:
        found = counts.get(pair.module)
        if found is None:
            pairs.append(pair)
            continue
        for e in range(found.count):
            key_A, key_B = f"{pair.key_A}[{e}]", f"{pair.key_B}[{e}]"
            axis_B = 0 if found.fusion == "stacked" else -1
            slices[key_A] = _Slice(pair.key_A, e, found.count, 0)
            slices[key_B] = _Slice(pair.key_B, e, found.count, axis_B)
            expert = Expert(pair.module, e, found.count, found.fusion, found.parameters)
            pairs.append(replace(pair, module=pair.module + expert.suffix, key_A=key_A,
                                 key_B=key_B, lookup=found.lookup, expert=expert))  # fmt: skip
    if taken := slices.keys() & source.tensors.keys():
        raise RejectedClient(f"tensor {quoted(min(taken))} is called like an expert's")
    _check_distinct(pairs)
    return ExpertTensors(source, slices), replace(keys, pairs=tuple(pairs))


def _check_distinct(pairs: Sequence[KeyPair]) -> None:
    names: set[str] = set()
    for pair in pairs:
        if pair.module in names:
            raise RejectedClient("two modules have this name", module=pair.module)
        names.add(pair.module)


@dataclass(frozen=True)
class _Fused:
    """Fused factors: number of experts, how they are fused, the path to look up in the config, and
    the names of the layer's parameters."""

    count: int
    fusion: Fusion
    lookup: str
    parameters: tuple[str, ...] = ()


def _counts(source: TensorSource, keys: KeyMap, config: AdapterConfig) -> dict[str, _Fused]:
    """The fused pairs by module."""
    found, layers = {}, defaultdict(list)
    parents = _parents(config.target_parameters)
    for pair in keys.pairs:
        shape_A, shape_B = (source.tensors[key].shape for key in (pair.key_A, pair.key_B))
        if _stacked(shape_A, shape_B):
            found[pair.module] = _Fused(shape_A[0], "stacked", pair.module)
            continue
        layer = _INSIDE.sub("", pair.module)
        targets = _targets(layer, parents)
        if targets and len(shape_A) == len(shape_B) == 2 and not pair.embedding:
            layers[layer].append((pair.module, shape_A[0], shape_B[1]))
        elif layer != pair.module:
            raise RejectedClient(
                "LoRA on parameters, and the config's target_parameters do not name them",
                module=pair.module,
                found=f"target_parameters {first_few(config.target_parameters) or 'empty'}",
                expected=f"parameters of {quoted(layer)}",
            )
    for layer, wrapped in layers.items():
        targets = tuple(f"{layer}.{name}" for name in _targets(layer, parents))
        found |= _experts_of(layer, wrapped, targets, config)
    return found


def _stacked(shape_A: Sequence[int], shape_B: Sequence[int]) -> bool:
    """Whether these are shapes (E, rank, in) and (E, out, rank), and not a convolution's, which are
    (rank, in, kernel) and (out, rank, 1)."""
    if not len(shape_A) == len(shape_B) == 3:
        return False
    convolution = shape_B[2] == 1 and shape_B[1] == shape_A[0]
    return shape_A[0] == shape_B[0] and shape_A[1] == shape_B[2] and not convolution


def _parents(targets: Sequence[str]) -> dict[str, list[str]]:
    """The layer's part of each of `target_parameters` to the names of its parameters."""
    parents: dict[str, list[str]] = defaultdict(list)
    for target in targets:
        parent, _, name = target.rpartition(".")
        parents[parent].append(name)
    return parents


def _targets(layer: str, parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of the parameters that PEFT targets in a layer: those of each parent that the layer's
    path is or ends in."""
    ends = (layer[i + 1 :] for i in range(len(layer)) if layer[i] == ".")
    own = itertools.chain([layer], ends, [""])
    return tuple(sorted({name for end in own for name in parents.get(end, ())}))


def _experts_of(
    layer: str,
    wrapped: Sequence[tuple[str, int, int]],
    targets: Sequence[str],
    config: AdapterConfig,
) -> dict[str, _Fused]:
    """The numbers of experts of one layer's pairs.

    The file does not say which pair is which parameter's. It does not matter where all have one
    rank and scale; else the numbers of experts must tell.

    Args:
        wrapped: module, rows of A and columns of B of each pair.
        targets: paths of the parameters that may be meant.
    """
    settings: dict[tuple[int, float], str] = {}
    each: list[tuple[int, float]] = []
    for path in targets:
        rank = config.rank_for(path)
        assert rank is not None, "a config with target_parameters has a rank"
        each.append((rank, config.scaling(path, rank)))
        settings.setdefault(each[-1], path)
    short = tuple(path.removeprefix(f"{layer}.") for path in targets)
    if len(settings) == 1 and len(wrapped) <= len(each):
        choices = {tuple(each[: len(wrapped)])}
    else:  # none for more pairs than parameters
        choices = set(itertools.permutations(each[:_MOST_PARAMETERS], len(wrapped)))
    ways = []
    for chosen in sorted(choices):
        counts = [
            _quotient(rows, columns, rank)
            for (_, rows, columns), (rank, _) in zip(wrapped, chosen, strict=True)
        ]
        if all(counts) and (len(settings) == 1 or len(set(counts)) == 1):
            ways.append((chosen, counts))
    if len(ways) != 1:
        sizes = ", ".join(f"{rows:,}" for _, rows, _ in wrapped)
        ranks = ", ".join(str(rank) for rank, _ in sorted(settings))
        raise RejectedClient(
            f"the number of experts can't be told from lora_A's rows ({sizes}) and the config's "
            f"ranks ({ranks}) of {first_few(short)}",
            module=layer,
            found=f"lora_A with {sizes} rows",
            expected=f"a multiple of the rank {ranks}",
        )
    ((chosen, counts),) = ways
    return {
        module: _Fused(count, "parameter", settings[setting], short)
        for (module, _, _), setting, count in zip(wrapped, chosen, counts, strict=True)
    }


def joined(fusion: Fusion, each: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pair of tensors of all experts of a layer: the inverse of reading them one by one.

    Args:
        each: (rank, in) and (out, rank) of every expert, in order.
    """
    import torch

    lora_A, lora_B = (torch.stack(side) for side in zip(*each, strict=True))
    if fusion == "stacked":
        return lora_A, lora_B
    return lora_A.flatten(0, 1), lora_B.permute(1, 2, 0).flatten(1)


def _quotient(rows: int, columns: int, rank: int) -> int:
    """Number of experts; 0 for factors that don't fit the rank or each other."""
    return rows // rank if rows == columns and rows % rank == 0 else 0
