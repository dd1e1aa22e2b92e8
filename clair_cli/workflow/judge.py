"""Judge a round: an outcome, and a verdict and a weight for every client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from clair_cli.adapters.adapter import Adapter
from clair_cli.cohort.choose import only_modules
from clair_cli.cohort.experts import layers_of
from clair_cli.cohort.round import Round
from clair_cli.cohort.selection import fewest_holders, modules_to_merge
from clair_cli.engine.engine import Engine
from clair_cli.engine.factors import RoundFactors
from clair_cli.engine.threads import in_order
from clair_cli.errors import InputRefused
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.own_sizes import OwnSizes
from clair_cli.maths.judge.judge import Judgement, judge
from clair_cli.maths.judge.with_heads import with_heads
from clair_cli.remark import Remark, warning
from clair_cli.settings import Settings
from clair_cli.text import first_few
from clair_cli.workflow.by_report import judgement_of
from clair_cli.workflow.compare import Comparison, compare
from clair_cli.workflow.components import check_components, check_overcomplete
from clair_cli.workflow.earlier import add_earlier
from clair_cli.workflow.heads import NO_HEADS, RoundHeads, look_at_heads
from clair_cli.workflow.remarks import first_round_remarks, judgement_remarks, weight_remarks
from clair_cli.workflow.review import Decision, allow
from clair_cli.workflow.trusted import first_clients, first_judged
from clair_cli.workflow.wrong_previous import wrong_previous


@dataclass(frozen=True)
class JudgedRound:
    """A round with its judgement.

    Attributes:
        evidence: of all modules; None if the round is refused.
        judgement: of the clients; None if the round is refused.
        weights: of every adapter in the merged mean, summing to 1; all 0 if nothing is merged.
        plain_weights: of every adapter in the plain mean of all comparable clients.
        warnings: remarks for the user, in order.
        sizes: of the clients' own delta weights; None if the round is refused.
        projected: by module, inner products of the projections that are merged in place of the
            minorities' members with all clients' delta weights, (n_members, n_clients); empty if
            none are.
        heads: the dense tensors beside the LoRA.
        decided: what a person decided, by the index of the client.
        capped: indices of the clients held at the largest weight that `--max-weight` allows; none
            where it changes nothing.
    """

    round: Round
    evidence: Evidence | None
    judgement: Judgement | None
    weights: tuple[float, ...]
    plain_weights: tuple[float, ...]
    warnings: tuple[Remark, ...]
    sizes: OwnSizes | None = None
    projected: Mapping[str, Tensor] = field(default_factory=dict)
    capped: tuple[int, ...] = ()
    heads: RoundHeads = NO_HEADS
    decided: Mapping[int, Decision] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """ "judged", "undetermined" or "refused"."""
        return "refused" if self.judgement is None else self.judgement.outcome

    @property
    def verdicts(self) -> set[str]:
        """The verdicts that occur, with "rejected" and "undetermined" among them."""
        found = {"rejected"} if self.round.rejected else set()
        if self.judgement is not None and self.judgement.outcome == "judged":
            return found | {v.verdict for v in self.judgement.verdicts}
        return found | ({"undetermined"} if self.round.adapters else set())

    @property
    def merged(self) -> tuple[int, ...]:
        """Indices of the clients with a weight."""
        return tuple(k for k, w in enumerate(self.weights) if w > 0)

    @property
    def minority(self) -> tuple[int, ...]:
        """Indices of the minorities' members, if the round is judged."""
        if self.judgement is None or self.judgement.outcome != "judged":
            return ()
        verdicts = enumerate(self.judgement.verdicts)
        return tuple(k for k, v in verdicts if v.verdict == "minority")

    @property
    def ordinary_weights(self) -> tuple[float, ...]:
        """Weights that sum to 1 over everybody who is merged and all minorities."""
        assert self.judgement is not None
        return normalised(_influenced(self.round, self.judgement))

    @cached_property
    def summed(self) -> Round:
        """The round as it is merged. With a previous adapter, a client lacks the modules that are
        not merged and those in which its difference is judged to be zero, so that the difference
        is merged as zero too."""
        if self.round.previous is None or self.evidence is None:
            return self.round
        added = dict(zip(self.round.module_shapes, (self.evidence.norms > 0).tolist(), strict=True))
        adapters = [
            only_modules(a, {m for m in self.merged_modules if added[m][k]})
            for k, a in enumerate(self.round.adapters)
        ]
        return replace(self.round, adapters=tuple(adapters))

    @cached_property
    def merged_modules(self) -> tuple[str, ...]:
        """The modules in which clients are merged: those that enough clients with a weight have
        (see `modules_to_merge`), without those in which all of these clients' delta weights are
        zero. If all are zero in every module, the modules stay."""
        clients = [self.round.adapters[k] for k in self.merged]
        holders = {m: sum(m in a.modules for a in clients) for m in self.round.module_shapes}
        enough = modules_to_merge(holders, len(clients), self.round.modules)
        if self.evidence is None:
            return enough
        sizes = self.evidence.norms[:, list(self.merged)].sum(1).tolist()
        size_of = dict(zip(self.round.module_shapes, sizes, strict=True))
        return tuple(m for m in enough if size_of[m] > 0) or enough

    @cached_property
    def written(self) -> tuple[str, ...]:
        """The modules of an adapter that this round writes: the merged ones and all of the previous
        adapter, if the merge is on top of it."""
        found = set(self.merged_modules)
        if self.round.previous is not None and not self.round.initial:
            found |= self.round.previous.modules.keys()
        # of a layer of fused experts, those without an update too: its tensors hold all of them
        layer_of = layers_of(self.round.adapters)
        layers = {layer_of[m] for m in found if m in layer_of}
        found |= {m for m, layer in layer_of.items() if layer in layers}
        return tuple(m for m in self.round.module_shapes if m in found)


def refused(round_: Round, warnings: tuple[Remark, ...] | None = None) -> JudgedRound:
    """A round in which nobody is judged."""
    zeros = tuple(0.0 for _ in round_.adapters)
    return JudgedRound(round_, None, None, zeros, zeros, warnings or round_.warnings)


def judge_round(factors: RoundFactors, engine: Engine, how: Settings) -> JudgedRound:
    """Compare the clients and judge them; nothing is merged yet.

    Args:
        how: of the options, `allow_undetermined`: whether all clients get a weight if the cohort
            cannot be judged; `minority`: "merge" gives the members of minorities a weight, else
            they have none; `fresh`: see `wrong_previous`; `allow`: see `allow`; `seen`: see
            `add_earlier`; `reviewed`: see `judgement_of`.

    Raises:
        ClientLost: a tensor changed since it was checked.
        ClientsUnfit, UsageError: see `check_components`.
    """
    round_ = factors.round
    check_overcomplete(round_)
    found = compare(factors, engine)
    check_components(round_, found.sizes, engine.device.dtype)
    engine.progress("judging", 0, 1)
    # on another thread, so that a signal is answered at once
    (judged,) = in_order(lambda _: _judged(factors, engine, found, how), [0], 1)
    engine.progress("judging", 1, 1)
    return _with_left_out(judged)


def _with_left_out(judged: JudgedRound) -> JudgedRound:
    """Add a warning that names the modules of merged clients that are not merged."""
    having = {m for k in judged.merged for m in judged.round.adapters[k].modules}
    gone = sorted(having.difference(judged.merged_modules))
    return replace(judged, warnings=(*judged.warnings, _left_out(judged, gone))) if gone else judged


def _left_out(judged: JudgedRound, modules: Sequence[str]) -> Remark:
    """The warning for modules that too few merged clients have, or in which all delta weights are
    zero."""
    n = len(judged.merged)
    few = {"common": f"fewer than {fewest_holders(n)}", "intersection": "not all"}
    why = f"{few.get(judged.round.modules, 'none')} of the {n} merged clients have an update there"
    noun = "module" if len(modules) == 1 else "modules"
    text = f"{len(modules):,} {noun} ({first_few(modules)}) not merged: {why}"
    return warning("modules_not_merged", text)


def refused_if_empty(judged: JudgedRound) -> JudgedRound:
    """The round, or a refused one if clients are merged but no module is."""
    if not judged.merged or judged.written:
        return judged
    refusal = InputRefused(
        "no module is left that the merged clients have in common",
        hint="leave out who has other modules with --exclude, or give --modules union",
    )
    return refused(replace(judged.round, refusal=refusal), judged.warnings)


def _judged(factors: RoundFactors, engine: Engine, found: Comparison, how: Settings) -> JudgedRound:
    round_, evidence = factors.round, found.evidence
    trusted, n = round_.trusted_indices, len(round_.adapters)
    given = _given(round_)
    judgement = judge(
        evidence, round_.compared.names, tuple(round_.module_shapes), trusted=trusted,
        ranks=[_rank(adapter) for adapter in round_.compared.adapters],
    )  # fmt: skip
    if round_.trust_adapter is not None:
        found, judgement = first_clients(found, n), first_judged(judgement, n)
        evidence = found.evidence
    heads = look_at_heads(factors, _voters(judgement), engine)
    if heads.judged is not None:
        judgement = with_heads(judgement, heads.judged, [k for k in trusted if k < n])
    remarks: list[Remark] = []
    if judgement.code == "heads_unrelated":
        remarks.append(Remark("heads_unrelated", "blocking", judgement.text))
    distinct = judgement.structure.distinct
    wrong = wrong_previous(round_, evidence, found.sizes, distinct, fresh=how.fresh)
    if wrong is not None:
        code, text, remedy = wrong
        remarks.append(Remark(code, "blocking", text))
        judgement = replace(judgement, outcome="undetermined", code=code, text=text, remedy=remedy)
    if how.reviewed is not None:
        judgement, decided = judgement_of(how.reviewed, judgement, round_, how.minority)
    else:
        judgement, of_earlier = add_earlier(judgement, round_, how)
        remarks += of_earlier
        judgement, decided, on_list = allow(judgement, round_, how.allow)
        remarks += on_list
    if judgement.outcome == "judged":
        raw = [
            0.0 if v.verdict == "minority" and how.minority != "merge" else w
            for w, v in zip(_influenced(round_, judgement), judgement.verdicts, strict=True)
        ]
    else:
        raw = list(given) if how.allow_undetermined else [0.0 for _ in given]
    remarks += weight_remarks(round_, normalised(given))
    remarks += judgement_remarks(
        judgement, allow_undetermined=how.allow_undetermined, first=round_.previous is None
    )
    if wrong is None:  # else it is none, or that is not known
        remarks += first_round_remarks(round_)
    return JudgedRound(
        round_, evidence, judgement, normalised(raw), normalised(given),
        (*round_.warnings, *remarks),
        found.sizes,
        heads=heads,
        decided=decided,
    )  # fmt: skip


def _voters(judgement: Judgement) -> tuple[int, ...]:
    """The clients that count in medians of dense tensors: the members, one of each set of copies;
    all distinct clients where nobody is judged."""
    members = judgement.members if judgement.outcome == "judged" else judgement.structure.distinct
    return tuple(k for k in members if k not in judgement.structure.copies)


def _rank(adapter: Adapter) -> int:
    return max((module.rank for module in adapter.modules.values()), default=0)


def _given(round_: Round) -> tuple[float, ...]:
    return round_.weights or tuple(1.0 for _ in round_.adapters)


def _influenced(round_: Round, judgement: Judgement) -> list[float]:
    """The given weights times the influence that each verdict leaves."""
    return [w * v.influence for w, v in zip(_given(round_), judgement.verdicts, strict=True)]


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights over their sum; all 0 if none is positive."""
    largest = max(weights, default=0.0)
    if largest <= 0:
        return tuple(0.0 for _ in weights)
    scaled = [w / largest for w in weights]
    total = sum(scaled)
    return tuple(w / total for w in scaled)
