"""Judge a round: the outcome, a verdict and a weight for every client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from clair_cli.maths.evidence import Evidence
from clair_cli.maths.judge import Judgement, judge, needs_cores
from clair_cli.maths.own_sizes import OwnSizes
from clair_cli.maths.packed_grams import PackedGrams
from clair_cli.maths.structure import find_structure
from clair_cli.workflow.components import check_components
from clair_cli.workflow.engine import Engine
from clair_cli.workflow.passes import Gathered, gather_cores, gather_evidence
from clair_cli.workflow.pool import in_order
from clair_cli.workflow.previous_remarks import previous_remarks
from clair_cli.workflow.round import Round
from clair_cli.workflow.tensors import Stacks


@dataclass(frozen=True)
class Judged:
    """A round with its judgement.

    Attributes:
        weights: of every adapter in the merged mean, summing to 1; all 0 if nothing is merged.
        plain_weights: what the plain mean of all comparable clients would use.
        grams: what was kept of the first pass, by module.
        stacks: where the factors come from, if they were looked at.
        sizes: of the clients' own delta weights, likewise.
    """

    round: Round
    evidence: Evidence | None
    judgement: Judgement | None
    weights: tuple[float, ...]
    plain_weights: tuple[float, ...]
    warnings: tuple[str, ...]
    grams: dict[str, PackedGrams]
    stacks: Stacks | None = None
    sizes: OwnSizes | None = None

    @property
    def outcome(self) -> str:
        return "refused" if self.judgement is None else self.judgement.outcome

    @property
    def verdicts(self) -> set[str]:
        """The verdicts that occur."""
        found = {"rejected"} if self.round.rejected else set()
        if self.judgement is not None and self.judgement.outcome == "judged":
            return found | {v.verdict for v in self.judgement.verdicts}
        return found | ({"undetermined"} if self.round.adapters else set())

    @property
    def merged(self) -> tuple[int, ...]:
        """Indices of the clients with a weight."""
        return tuple(k for k, w in enumerate(self.weights) if w > 0)

    @cached_property
    def summed(self) -> Round:
        """The round as it is merged: a client lacks the modules in which it is judged to have added
        nothing to the previous adapter. What is judged zero is merged as zero."""
        if self.round.previous is None or self.evidence is None:
            return self.round
        added = dict(zip(self.round.module_shapes, (self.evidence.norms > 0).tolist(), strict=True))
        adapters = [
            replace(a, modules={m: entry for m, entry in a.modules.items() if added[m][k]})
            for k, a in enumerate(self.round.adapters)
        ]
        return replace(self.round, adapters=tuple(adapters))

    @property
    def written(self) -> tuple[str, ...]:
        """The modules that an adapter of this round has: those of the clients with a weight and
        of the previous adapter. A client that is left out brings none."""
        sources = [self.round.adapters[k] for k in self.merged]
        if self.round.previous is not None:
            sources.append(self.round.previous)
        return tuple(m for m in self.round.module_shapes if any(m in a.modules for a in sources))


def judge_round(
    round_: Round,
    engine: Engine,
    *,
    allow_undetermined: bool,
    foresee: Callable[[Judged, Engine], object] | None = None,
) -> Judged:
    """First pass and judgement; nothing is merged yet.

    Args:
        foresee: called, once the groups are known, with what will probably come out.

    Raises:
        ClientsUnfit, UsageError: see `check_components`.
    """
    zeros = tuple(0.0 for _ in round_.adapters)
    if round_.refusal is not None:
        return Judged(round_, None, None, zeros, zeros, round_.warnings, {})
    gathered = gather_evidence(round_, engine)
    check_components(round_, gathered.sizes, engine.device.dtype)
    engine.tell("judging", 0, 1)
    (judged,) = in_order(
        lambda _: _judged(round_, engine, gathered, allow_undetermined, foresee), [0], 1
    )
    engine.tell("judging", 1, 1)
    return judged


def _judged(
    round_: Round,
    engine: Engine,
    gathered: Gathered,
    allow_undetermined: bool,
    foresee: Callable[[Judged, Engine], object] | None,
) -> Judged:
    evidence = gathered.evidence
    structure = find_structure(evidence)
    given = round_.weights or tuple(1.0 for _ in round_.adapters)
    if foresee is not None and len(structure.group) >= 3:
        inside = [w if k in structure.group else 0.0 for k, w in enumerate(given)]
        foresee(_foreseen(round_, gathered, _normalised(inside)), engine)
    side = needs_cores(structure)
    cores = None
    if side is not None:
        cores = gather_cores(gathered.stacks, side, engine, gathered.kept)
    judgement = judge(
        evidence, round_.names, tuple(round_.module_shapes), structure=structure, cores=cores
    )
    if judgement.outcome == "judged":
        raw = [w * v.influence for w, v in zip(given, judgement.verdicts, strict=True)]
    else:
        raw = list(given) if allow_undetermined else [0.0 for _ in given]
    return Judged(
        round_, evidence, judgement, _normalised(raw), _normalised(given),
        round_.warnings
        + previous_remarks(round_, evidence)
        + _remarks(judgement, allow_undetermined),
        gathered.kept, gathered.stacks, gathered.sizes,
    )  # fmt: skip


def _foreseen(round_: Round, gathered: Gathered, weights: tuple[float, ...]) -> Judged:
    """What comes out if the members of the group, and nobody else, have all of their weight."""
    return Judged(
        round_, gathered.evidence, None, weights, weights, (), gathered.kept, gathered.stacks,
        gathered.sizes,
    )  # fmt: skip


def _normalised(weights: tuple[float, ...] | list[float]) -> tuple[float, ...]:
    largest = max(weights, default=0.0)
    if largest <= 0:
        return tuple(0.0 for _ in weights)
    scaled = [w / largest for w in weights]
    total = sum(scaled)
    return tuple(w / total for w in scaled)


def _remarks(judgement: Judgement, allow_undetermined: bool) -> tuple[str, ...]:
    """What a reader must know of the judgement besides the verdicts."""
    if judgement.outcome != "judged":
        text = "merged without a verdict (--allow-undetermined): everybody who is not rejected"
        return (text,) if allow_undetermined else ()
    if judgement.structure.stacking != "input":
        return ()
    return (
        "sharing shows only in the input directions, which adapters that started from the same "
        "lora_A share whatever they learnt: read the verdicts with care",
    )
