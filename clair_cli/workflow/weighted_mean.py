"""What is merged, and the factors that the sums of some modules are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from clair_cli.cohort.round import Round
from clair_cli.engine.factors import RoundFactors, adds_previous, summed_weights
from clair_cli.maths.factors.lowrank import Product
from clair_cli.maths.factors.stack import Factors, FactorStack, is_overcomplete
from clair_cli.maths.merge.mean import weighted_sum
from clair_cli.workflow.plan import Cut


@dataclass(frozen=True)
class WeightedMean:
    """What is merged.

    Attributes:
        clients: indices in the round, ascending.
        weights: one positive number each, summing to 1.
        room: bytes of one module's results that may be kept for the second look.
        cuts: how modules whose factors the first look reads may be asked to be cut: that is done
            at once, as far as there is room, so that factors are read once. None: it is not.
        read_room: bytes of one module's factors that the first look may keep for the second.
    """

    clients: tuple[int, ...]
    weights: tuple[float, ...]
    room: int
    cuts: tuple[Cut, ...] = ()
    read_room: int = 0

    def ranks(self, round_: Round, module: str) -> list[int]:
        """Rank-one components of every entry of `RoundFactors.summed`."""
        adapters = [round_.adapters[k] for k in self.clients]
        ranks = [a.modules[module].components if module in a.modules else 0 for a in adapters]
        if adds_previous(round_, module, self.clients):
            ranks.append(round_.previous_rank(module))
        return ranks

    def overcomplete(self, round_: Round, module: str) -> bool:
        """Whether the module's stack is over-complete."""
        return is_overcomplete(sum(self.ranks(round_, module)), round_.module_shapes[module])


class ReadSums:
    """What the sums of some modules of one shape are made of, read when it is needed first."""

    def __init__(self, mean: WeightedMean, factors: RoundFactors, modules: Sequence[str]) -> None:
        self.mean, self.factors, self.modules = mean, factors, list(modules)
        self.was_read = False
        self._sums: dict[str, Product] = {}

    @cached_property
    def stack(self) -> FactorStack:
        """Of all the modules."""
        self.was_read = True
        return self.factors.stack(self.modules, self.mean.clients)

    def stack_of(self, modules: Sequence[str]) -> FactorStack:
        """Of some of the modules that stand side by side."""
        if len(modules) == len(self.modules):
            return self.stack
        rows = [self.modules.index(module) for module in modules]
        picked = {name: getattr(self.stack, name)[rows] for name in ("lora_A", "lora_B", "scaling")}
        return replace(self.stack, **picked)

    def sum_of(self, module: str) -> Product:
        """The weighted sum of one module as a product of stacked factors, on the CPU."""
        if module not in self._sums:
            round_, mean = self.factors.round, self.mean
            weights = summed_weights(round_, module, mean.clients, mean.weights)
            shape = round_.module_shapes[module]
            self._sums[module] = weighted_sum(self._entries(module), weights, shape)
        return self._sums[module]

    def _entries(self, module: str) -> list[Factors]:
        """As `RoundFactors.summed`; from the stack, if that was made, and has the numbers as they
        were sent."""
        made = vars(self).get("stack")
        self.was_read = True
        if made is None or max(made.lora_A.element_size(), made.lora_B.element_size()) > 4:
            return self.factors.summed(module, self.mean.clients)
        row, ranks = self.modules.index(module), list(made.ranks)
        each_A = made.lora_A[row].cpu().split(ranks)
        each_B = made.lora_B[row].cpu().split(ranks, dim=1)
        return list(zip(each_A, each_B, made.scaling[row].tolist(), strict=True))
