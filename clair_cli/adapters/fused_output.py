"""Fused experts as they are written: one pair of tensors for all experts of a layer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clair_cli.adapters.adapter import Adapter
from clair_cli.adapters.experts import joined
from clair_cli.adapters.names.parts import Expert, Fusion
from clair_cli.adapters.output_format import OutputFormat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FusedPair:
    """One pair of tensors to write.

    Attributes:
        path: of the layer in the file.
        keys: names of the two tensors.
        fusion: how they hold the experts.
        count: number of experts.
        members: the modules written, with their indices as experts; the others are zero.
    """

    path: str
    keys: tuple[str, str]
    fusion: Fusion
    count: int
    members: Mapping[str, int]

    def tensors(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """The two tensors, by name.

        Args:
            factors: module to (rank, in) and (out, rank), for every member.
        """
        each: list[tuple[Tensor, Tensor] | None] = [None] * self.count
        for module, index in self.members.items():
            each[index] = factors[module]
        (some, *_) = factors.values()
        zero = some[0].new_zeros(some[0].shape), some[1].new_zeros(some[1].shape)
        both = joined(self.fusion, [zero if pair is None else pair for pair in each])
        return dict(zip(self.keys, both, strict=True))

    def empty(self, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        """The two tensors without values, by name. To join tensors on the device "meta" gives the
        same, but has torch import its compiler first, which takes a second.

        Args:
            lora_A, lora_B: one member's, (rank, in) and (out, rank).
        """
        (rank, columns), rows, count = lora_A.shape, len(lora_B), self.count
        shapes: tuple[tuple[int, ...], ...] = (count * rank, columns), (rows, rank * count)
        if self.fusion == "stacked":
            shapes = (count, rank, columns), (count, rows, rank)
        both = zip((lora_A, lora_B), shapes, strict=True)
        return dict(zip(self.keys, (like.new_empty(s) for like, s in both), strict=True))


def fused_pairs(
    adapters: Sequence[Adapter], modules: Sequence[str], output: OutputFormat
) -> tuple[FusedPair, ...]:
    """The pairs that hold more than one of the modules, sorted by path.

    Args:
        adapters: those that are followed.
        modules: those that are written.
    """
    experts: dict[str, Counter[Expert]] = defaultdict(Counter)
    wanted = set(modules)
    for adapter in adapters:
        for name, module in adapter.modules.items():
            if module.expert is not None and name in wanted:
                experts[name][module.expert] += 1
    by_path: dict[str, dict[str, Expert]] = defaultdict(dict)
    for name in sorted(experts):
        expert = max(experts[name], key=lambda e: (experts[name][e], repr(e)))
        by_path[output.names[name].removesuffix(expert.suffix)][name] = expert
    return tuple(
        FusedPair(
            path,
            (f"{output.prefix}{path}.lora_A.weight", f"{output.prefix}{path}.lora_B.weight"),
            next(iter(members.values())).fusion,
            max(max(e.count, e.index + 1) for e in members.values()),
            {name: expert.index for name, expert in members.items()},
        )
        for path, members in sorted(by_path.items())
    )


def targets_of(
    pairs: Sequence[FusedPair], config: Mapping[str, object], adapters: Sequence[Adapter]
) -> dict[str, object]:
    """The fields of a config that name the layers of fused experts, beside its other modules.

    Args:
        config: of the other modules; its `target_modules` are a list.
    """
    modules = config["target_modules"]
    assert isinstance(modules, list)
    stacked = [pair.path for pair in pairs if pair.fusion == "stacked"]
    fields: dict[str, object] = {"target_modules": sorted([*modules, *stacked])}
    if len(stacked) < len(pairs):
        fields["target_parameters"] = _parameters(adapters)
    return fields


def _parameters(adapters: Sequence[Adapter]) -> list[str]:
    """PEFT's field for the parameters that fused experts are: as most of the clients have it, else
    the names of all, which are the same parameters (see `cohort.experts`)."""
    each = [a.config.target_parameters for a in adapters if a.config.target_parameters]
    ((most, count),) = Counter(each).most_common(1) or [((), 0)]
    if 2 * count > len(each):
        return list(most)
    return sorted({name for names in each for name in names})
