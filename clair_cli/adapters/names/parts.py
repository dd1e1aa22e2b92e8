"""Tensor names, parsed: the part of a LoRA pair that a tensor is, and the pairs of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from clair_cli.remark import Remark

Format = Literal["peft", "diffusers", "kohya", "mlx"]
Part = Literal["A", "B", "alpha"]
DenseKind = Literal["dense", "lora_bias", "rows"]
Fusion = Literal["parameter", "stacked"]


FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class TensorPart:
    """One tensor's name, parsed.

    Attributes:
        format: of the name.
        part: "A" or "B", or "alpha" (a scalar, the module's alpha).
        module: module path as the file has it, without `prefix` and the adapter's name.
        prefix: "base_model.model." or "".
        adapter: PEFT's name of the adapter, or "".
        embedding: whether the name has `lora_embedding`.
    """

    format: Format
    part: Part
    module: str
    prefix: str = ""
    adapter: str = ""
    embedding: bool = False


@dataclass(frozen=True)
class Expert:
    """One expert of a layer whose experts' factors are one pair of tensors; see `experts`.

    Attributes:
        layer: path of the pair.
        index: of the expert. count: of the layer's experts, more than `index`.
        fusion: how the pair holds them.
        parameters: names of the layer's parameters that are adapted, sorted; () if not known.
    """

    layer: str
    index: int
    count: int
    fusion: Fusion
    parameters: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What stands behind the layer's path in the expert's name as a module."""
        return f"[{self.index}]"


@dataclass(frozen=True)
class KeyPair:
    """The tensor names of one module: `lora_A`, `lora_B` and, where the file has it, alpha.

    Attributes:
        lookup: the path that the config's patterns are looked up by, if not `module`.
        expert: which one of a layer of fused experts it is, or None.
    """

    module: str
    key_A: str
    key_B: str
    key_alpha: str | None = None
    embedding: bool = False
    lookup: str = ""
    expert: Expert | None = None

    @property
    def path(self) -> str:
        """The path that the config's patterns are looked up by."""
        return self.lookup or self.module


@dataclass(frozen=True)
class DenseKey:
    """The name of a tensor that is no part of a pair: see `adapters.dense`.

    Attributes:
        name: without the prefix, wrappers and the adapter's name. key: as in the file.
        kind: as in `DenseTensor`. module: of "lora_bias", its module's path; else "".
    """

    name: str
    key: str
    kind: DenseKind
    module: str = ""


@dataclass(frozen=True)
class KeyMap:
    """All pairs of one file, and its dense tensors.

    Attributes:
        prefix: what stands before every module path: "base_model.model." or "".
        pairs: sorted by module, one each, at least one.
        format: of the names.
        scale_inside: the file needs no config: a module's alpha is in the file, or is its rank
            by the rule of the format's own loader.
        notes: remarks for the report.
        dense: sorted by name.
    """

    prefix: str
    pairs: tuple[KeyPair, ...]
    format: Format = "peft"
    scale_inside: bool = False
    notes: tuple[Remark, ...] = ()
    dense: tuple[DenseKey, ...] = ()
