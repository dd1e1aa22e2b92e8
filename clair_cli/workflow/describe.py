"""A judged round as the report's plain numbers and words."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from statistics import median

from torch import Tensor

from clair_cli.cohort.model import Rejection
from clair_cli.cohort.round import Round
from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.similarity import mean_similarity
from clair_cli.maths.judge.judge import Judgement
from clair_cli.maths.judge.scores import Scores
from clair_cli.maths.judge.structure import Structure
from clair_cli.maths.judge.verdicts import LEAST_P
from clair_cli.report.cohort import CohortReport, DecompositionReport, Group, ModuleReport
from clair_cli.report.model import (
    ClientReport,
    ClientScores,
    EarlierScores,
    HeadScores,
    ModuleScores,
    Reason,
    Review,
)
from clair_cli.report.results import HeadReport
from clair_cli.text import bytes_of, quoted
from clair_cli.workflow.heads import MergedHead
from clair_cli.workflow.judge import JudgedRound
from clair_cli.workflow.map import line_of, map_of
from clair_cli.workflow.weight_cap import spread_of


def number(value: float | None) -> float | None:
    """A finite float, or None: NaN and infinity never reach a report."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _bounded_share(value: float) -> float | None:
    """A ratio of norms or energies, kept inside 0 to 1 against rounding."""
    return None if not math.isfinite(value) else min(1.0, max(0.0, float(value)))


def describe_clients(judged: JudgedRound) -> tuple[ClientReport, ...]:
    """All clients, rejected ones too, sorted by name."""
    clients = [_client(judged, k) for k in range(len(judged.round.adapters))]
    clients += [_rejected(r, judged.round.trusted) for r in judged.round.rejected]
    return tuple(sorted(clients, key=lambda c: c.name))


def _rejected(rejection: Rejection, trusted: Container[str]) -> ClientReport:
    """The report on a rejected client."""
    text = rejection.message.removeprefix(f"client {quoted(rejection.name)}").lstrip(":, ")
    text += f"; {rejection.hint}" if rejection.hint else ""
    return ClientReport(
        rejection.name, "rejected", (Reason("rejected", text),), ClientScores(), 0.0,
        rejection.sha256, rejection.path, name_bytes=bytes_of(rejection.name),
        trusted=rejection.name in trusted, judged="rejected",
    )  # fmt: skip


def _client(judged: JudgedRound, k: int) -> ClientReport:
    """The report on a client that is comparable."""
    adapter, judgement = judged.round.adapters[k], judged.judgement
    verdict = "undetermined"
    reasons: tuple[Reason, ...] = (Reason("undetermined", "not judged"),)
    if judgement is not None and judgement.outcome == "judged":
        verdict = judgement.verdicts[k].verdict
        reasons = tuple(Reason(f.code, f.text) for f in judgement.verdicts[k].findings)
        reasons += _scale_reason(judged, k, reasons)
    elif judgement is not None:
        reasons = (Reason(judgement.code, _NOT_JUDGED[judgement.code]),)
        if judgement.code == "too_few_left":  # the findings against each of the others help
            found = tuple(Reason(f.code, f.text) for f in judgement.verdicts[k].findings)
            reasons = found or reasons
    modules = adapter.modules.values()
    return ClientReport(
        adapter.name, verdict, reasons, _scores(judged, k), judged.weights[k], adapter.sha256,
        adapter.path,
        tuple(sorted({m.rank for m in modules})), tuple(sorted({m.scaling for m in modules})),
        _module_scores(judged, k),
        bytes_of(adapter.name), adapter.name in judged.round.trusted,
        *_how_sure(judged, k), _head_scores(judged, k), *_review(judged, k, verdict),
        _earlier(judged, k),
    )  # fmt: skip


def _earlier(judged: JudgedRound, k: int) -> EarlierScores | None:
    """What earlier rounds add to a client's verdict."""
    judgement = judged.judgement
    if judgement is None or judgement.outcome != "judged":
        return None
    over = judgement.verdicts[k].over_rounds
    if over is None:
        return None
    return EarlierScores(
        over.rounds, over.loading, over.se, max(over.p_line, LEAST_P),
        over.power, over.agrees, over.alone,
    )  # fmt: skip


def _review(judged: JudgedRound, k: int, verdict: str) -> tuple[str, Review | None]:
    """A client's `judged` and `review`."""
    decision = judged.decided.get(k)
    if decision is None:
        return verdict, None
    review = Review(decision.reason, decision.by, decision.until)
    return decision.judged, None if review == Review() else review


def _head_scores(judged: JudgedRound, k: int) -> dict[str, HeadScores]:
    """One client's dense tensors that are not the same in all clients, by name."""
    heads = judged.heads
    own = {t.name for t in heads.tensors if k in t.own}
    if heads.judged is None:
        return {}
    return {
        name: HeadScores(
            float(heads.judged.norms[t, k]),
            number(float(heads.judged.alike[t, k])),
            number(float(heads.judged.whole_alike[t, k])),
        )
        for t, name in enumerate(heads.names)
        if name in own
    }


def describe_heads(heads: Sequence[MergedHead]) -> tuple[HeadReport, ...]:
    """The dense tensors of a result."""
    return tuple(
        HeadReport(
            h.tensor.name, h.tensor.shape, h.dtype, len(h.clients), h.tensor.equal, h.bounded
        )
        for h in heads
    )  # fmt: skip


def _how_sure(judged: JudgedRound, k: int) -> tuple[float | None, str | None, float | None]:
    """A client's `p_honest`, `confidence` and `power`."""
    scores, judgement = _scores_of(judged, k), judged.judgement
    power = None if scores is None else number(scores.power)
    if judgement is None or judgement.outcome != "judged":
        return None, None, power
    verdict = judgement.verdicts[k]
    if math.isnan(verdict.p_honest):
        return None, None, power
    return verdict.p_honest, verdict.confidence, power


def _scale_reason(judged: JudgedRound, k: int, found: Sequence[Reason]) -> tuple[Reason, ...]:
    """A further reason if both a client's norm and its scaling are far above the others'."""
    if not {"norm", "module_norm"} & {reason.code for reason in found}:
        return ()
    largest = [
        max((abs(m.scaling) for m in adapter.modules.values()), default=0.0)
        for adapter in judged.round.adapters
    ]
    own, typical = largest.pop(k), median(largest)
    if own <= 2 * typical:
        return ()
    text = f"scales by up to {own:.3g}, where the others' median is {typical:.3g}"
    return (Reason("scale", text),)


_NOT_JUDGED = {
    "same_start": "all clients are nearly the same",
    "heads_unrelated": "what was trained beside the LoRA has nothing in common",
    "previous_cancels": "what was added to the previous adapter cancels out",
    "previous_absent": "little of the previous adapter is in the clients",
    "same_update": "all clients are the same update",
    "no_updates": "every delta weight is zero",
    "too_few": "too few clients to compare",
    "too_few_left": "too few clients agree",
    "nothing_shared": "nothing is shared",
    "one_side": "only a side is shared",
    "little_shared": "too little is shared to judge by",
    "not_converged": "the decomposition did not converge",
    "two_groups": "two groups of similar size",
    "trusted_alone": "unlike the trusted client",
    "trusted_disagree": "trusted clients contradict each other",
}


def _scores_of(judged: JudgedRound, k: int) -> Scores | None:
    """The judge's scores of a client; None if it computed none."""
    judgement = judged.judgement
    return None if judgement is None or judgement.scores is None else judgement.scores[k]


def _scores(judged: JudgedRound, k: int) -> ClientScores:
    """A client's scores as the report has them; without numbers if there are none."""
    scores, judgement = _scores_of(judged, k), judged.judgement
    if scores is None or judgement is None:
        return ClientScores()
    block = off = None
    result = judgement.collaborative
    if result is not None:
        off = _bounded_share(math.sqrt(max(0.0, 1.0 - float(result.captured[k]))))
        if k in result.clients:
            block = float(result.solution.block_norms[result.clients.index(k)])
    similar = [x for x in scores.module_similarity.tolist() if not math.isnan(x)]
    # without a pair with any member nothing is known, and the error has no bounds
    loading, se = (scores.loading, scores.loading_se) if scores.loading_se < 1e6 else (None, None)
    return ClientScores(
        loading=number(loading),
        loading_se=number(se),
        similarity=number(math.fsum(similar) / len(similar)) if similar else None,
        off_line_ratio=off,
        block_norm=number(block),
        measures={name: number(value) for name, value in scores.values.items()},
    )


def _module_scores(judged: JudgedRound, k: int) -> dict[str, ModuleScores]:
    """One client's scores in each module, by module."""
    names, scores = list(judged.round.module_shapes), _scores_of(judged, k)
    norms = [0.0] * len(names)
    if judged.evidence is not None:
        norms = judged.evidence.norms[:, k].tolist()
    alike = chance = [math.nan] * len(names)
    if scores is not None:
        alike, chance = scores.module_similarity.tolist(), scores.module_chance.tolist()
    found = {}
    for i, (name, norm) in enumerate(zip(names, norms, strict=True)):
        entry = judged.round.adapters[k].modules.get(name)
        found[name] = ModuleScores(
            number(norm) or 0.0, number(alike[i]), number(chance[i]),
            0 if entry is None else entry.rank, None if entry is None else entry.scaling,
        )  # fmt: skip
    return found


def describe_cohort(judged: JudgedRound) -> CohortReport:
    """Outcome, sharing, groups, decomposition and the similarity matrix."""
    round_, judgement = judged.round, judged.judgement
    n_comparable = 0 if judgement is None else len(round_.adapters)
    n_clients = len(round_.adapters) + len(round_.rejected)
    if judgement is None or judged.evidence is None:
        refusal = round_.refusal
        text, remedy = ("", "") if refusal is None else (refusal.message, refusal.hint)
        return CohortReport(
            "refused", text, remedy, n_clients, n_comparable, None, None, None, None, None, (),
            None, (), (), (),
        )  # fmt: skip
    structure = judgement.structure
    names, order = _sorted_names(round_)
    stacking = structure.stacking or "matrix"
    similarity = mean_similarity(stacking, judged.evidence.table(stacking))
    judged_now = judgement.outcome == "judged"
    votes = [judgement.verdicts[k].verdict for k in structure.distinct] if judged_now else []
    level, is_sure = None, False
    if structure.groups:
        level = judged.evidence.levels(stacking).level(structure.group)
        is_sure = structure.groups[0].is_sure
    return CohortReport(
        judgement.outcome, judgement.text, judgement.remedy, n_clients, n_comparable,
        stacking if is_sure else None,
        None if level is None else number(level.mean),
        None if level is None else number(level.se), number(judgement.power),
        votes.count("contaminated") / len(votes) if votes else None,
        _describe_groups(judged.evidence, judgement, round_),
        _decomposition(judgement, round_),
        names, _matrix(similarity.excess, order), _matrix(similarity.se, order),
        spread_of(judged),
        *line_of(judgement), *map_of(similarity.excess, order),
    )  # fmt: skip


def _sorted_names(round_: Round) -> tuple[tuple[str, ...], list[int]]:
    order = sorted(range(len(round_.adapters)), key=lambda k: round_.adapters[k].name)
    return tuple(round_.adapters[k].name for k in order), order


def _matrix(values: Tensor, order: Sequence[int]) -> tuple[tuple[float | None, ...], ...]:
    rows = values.tolist()
    return tuple(tuple(number(rows[j][k]) for k in order) for j in order)


def _named(group: Sequence[int], round_: Round) -> tuple[str, ...]:
    return tuple(sorted(round_.adapters[k].name for k in group))


def _describe_groups(evidence: Evidence, judgement: Judgement, round_: Round) -> tuple[Group, ...]:
    structure = judgement.structure
    if structure.stacking is None:
        return ()
    levels = evidence.levels(structure.stacking)
    found = [Group(_named(structure.group, round_), number(levels.level(structure.group).mean),
                   "collaborative")]  # fmt: skip
    found += [
        Group(_named(g, round_), number(levels.level(g).mean), "other") for g in structure.others
    ]
    found += [Group(_named(m.members, round_), None, "minority") for m in judgement.minorities]
    singletons = sorted(round_.adapters[k].name for k in structure.singletons)
    return (*found, *(Group((name,), None, "loner") for name in singletons))


def _decomposition(judgement: Judgement, round_: Round) -> DecompositionReport | None:
    result = judgement.collaborative
    if result is None:
        return None
    solution = result.solution
    kept = _named(result.kept, round_)
    blamed = {k for k in result.clients if judgement.verdicts[k].verdict == "contaminated"}
    agrees = set(judgement.structure.group) <= set(result.kept) and not blamed & set(result.kept)
    left = _named([k for k in result.clients if k not in result.kept], round_)
    return DecompositionReport(
        "stable", solution.low_rank_penalty, solution.block_penalty, solution.gap,
        solution.n_iter, solution.outcome == "converged", kept, left,
        agrees,
    )  # fmt: skip


def describe_modules(judged: JudgedRound) -> tuple[ModuleReport, ...]:
    """One entry per module, sorted by name."""
    round_, judgement, evidence = judged.round, judged.judgement, judged.evidence
    n = len(round_.module_shapes)
    n_updates: list[int] = [0] * n
    inside: list[float | None] = [None] * n
    outside: list[float | None] = [None] * n
    names = {} if round_.output is None else round_.output.names
    written = set(judged.written if judged.merged else names)
    if judgement is not None and evidence is not None:
        n_updates = (evidence.norms > 0).sum(1).tolist()
        inside, outside = _module_levels(evidence, judgement.structure)
    return tuple(
        ModuleReport(
            name, shape, n_updates[i],
            tuple(sorted(a.name for a in round_.adapters if name not in a.modules)),
            inside[i], outside[i],
            names.get(name) if name in written else None,
        )
        for i, (name, shape) in enumerate(round_.module_shapes.items())
    )  # fmt: skip


def _module_levels(
    evidence: Evidence, structure: Structure
) -> tuple[list[float | None], list[float | None]]:
    """Similarity inside the coherent group, and between the group and the other distinct clients,
    in every module."""
    nothing: list[float | None] = [None] * len(evidence.norms)
    if structure.stacking is None or not structure.groups:
        return nothing, nothing
    levels = evidence.levels(structure.stacking)
    rest = [k for k in structure.distinct if k not in structure.group]
    inside = [number(float(value)) for value in levels.within(structure.group)]
    if not rest:
        return inside, nothing
    return inside, [number(float(value)) for value in levels.between(structure.group, rest)]
