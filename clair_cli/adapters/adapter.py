"""One client's adapter, of any format: its modules' names, shapes and scales; factors on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clair_cli.adapters.config import AdapterConfig
from clair_cli.adapters.dense import DenseTensor
from clair_cli.adapters.layout import Layout
from clair_cli.adapters.names.parts import Expert, Format
from clair_cli.formats.safetensors.source import TensorSource, tensor_of
from clair_cli.remark import Remark

if TYPE_CHECKING:
    from torch import Tensor


DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number of the dtypes that a module may have."""


@dataclass(frozen=True)
class LoraModule:
    """The low-rank pair of one module; as matrices, `delta_weight = scaling * B @ A`.

    Attributes:
        name: module path, without `base_model.model.` and without the adapter's name: dotted,
            or kohya's with underscores. Clients that call one module by several names get one.
        written: the path as the client's own file has it.
        key_A: tensor name of `lora_A` (kohya's `lora_down`).
        key_B: tensor name of `lora_B` (kohya's `lora_up`).
        layout: the kind of layer, and what the shapes of the two tensors mean.
        rank: LoRA's rank as the tensors have it, at least 1.
        alpha: `lora_alpha` in force for this module (`alpha_pattern` applied).
        scaling: `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`; finite, may be negative.
        dtype: "float32", "float16" or "bfloat16" (the wider one if A and B differ).
        expert: which one of a layer of fused experts it is, or None.
    """

    name: str
    written: str
    key_A: str
    key_B: str
    layout: Layout
    rank: int
    alpha: float
    scaling: float
    dtype: str
    expert: Expert | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of `B @ A`: see `Layout`."""
        return self.layout.matrix

    @property
    def components(self) -> int:
        """Rank-one components that `Adapter.factors` gives: at most the shorter side of `shape`."""
        return min(self.rank, *self.shape)

    @property
    def is_double(self) -> bool:
        """Whether a factor that `Adapter.factors` gives is in float64."""
        return self.dtype == "float64" or self.components < self.rank

    @property
    def factor_bytes(self) -> int:
        """Most bytes of the two factors that `Adapter.factors` gives."""
        each = DTYPE_BYTES["float64" if self.is_double else self.dtype]
        return each * self.components * sum(self.shape)


@dataclass(frozen=True)
class Adapter:
    """One client's adapter. Holds no tensor; `factors` reads the pair of one module.

    Attributes:
        name: the client's name.
        path: file or folder as the user gave it, or "" for an adapter in memory.
        sha256: of the whole weights file (in memory: of its canonical bytes), hex.
        config: the parsed adapter config.
        prefix: what stands before the module path in tensor names: "base_model.model." or "".
        format: of the tensor names in the file.
        modules: by name, sorted.
        source: of the tensors' bytes.
        notes: remarks worth a line in the report ("adapter_model.bin ignored"), in order.
        dense: tensors trained as a whole beside the LoRA, by name, sorted.
        alpha_tensors: whether some module's alpha is a tensor of the file.
    """

    name: str
    path: str
    sha256: str
    config: AdapterConfig
    prefix: str
    modules: Mapping[str, LoraModule]
    source: TensorSource
    notes: tuple[Remark, ...] = ()
    format: Format = "peft"
    dense: Mapping[str, DenseTensor] = field(default_factory=dict)
    alpha_tensors: bool = False

    def content(self) -> str:
        """A digest (SHA-256, hex) of modules, ranks, dtypes, scales and values: equal for adapters
        that differ only in names of client, file and tensors, or in the rest of the file."""
        whole, tensors = hashlib.sha256(), self.source.tensors
        for name, m in sorted(self.modules.items()):
            whole.update(repr((name, m.rank, m.layout, m.dtype, m.scaling)).encode("utf-8"))
            whole.update(tensors[m.key_A].digest + tensors[m.key_B].digest)
        for name, d in sorted(self.dense.items()):
            whole.update(repr((name, d.shape, d.dtype, d.scaling, d.rows)).encode("utf-8"))
            whole.update(tensors[d.key].digest)
        return whole.hexdigest()

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Matrices whose product is one module's B A.

        Returns:
            `(lora_A, lora_B)`, (components, columns) and (rows, components): those of the file; or,
            where the rank is above the shorter side of the matrix, that product and the identity,
            in float64.

        Raises:
            KeyError: the adapter has no such module (its delta weight there is zero).
            RejectedClient: a tensor changed since the adapter was opened.
        """
        entry, pair = self.modules[module], self.stored_factors(module)
        return pair if entry.components == entry.rank else _recompressed(*pair)

    def stored_factors(self, module: str) -> tuple[Tensor, Tensor]:
        """`(lora_A, lora_B)` of one module as the file has them, (rank, columns) and (rows, rank).

        Raises:
            KeyError, RejectedClient: as `factors`.
        """
        entry = self.modules[module]
        lora_A, lora_B = (tensor_of(self.source, key) for key in (entry.key_A, entry.key_B))
        return entry.layout.flat(lora_A, lora_B)


def _recompressed(lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
    """The product of two factors and the identity, as factors of that product in float64."""
    product = lora_B.double() @ lora_A.double()
    unit = product.new_ones(min(product.shape)).diag()
    return (product, unit) if product.shape[0] <= product.shape[1] else (unit, product)
