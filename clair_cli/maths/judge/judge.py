"""From evidence to verdicts: structure, decomposition, scores, rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.evidence.side_cores import SideCores
from clair_cli.maths.judge.collaborate import CollaborativeSet, collaborate, matrix_core
from clair_cli.maths.judge.minority import Minority, find_minorities
from clair_cli.maths.judge.outcome import (
    NOTHING_SHARED,
    contradicting,
    large_minority,
    little_shared,
    some_names,
    unsolved,
    without_verdict,
)
from clair_cli.maths.judge.scores import Scores, captured_by_mean, score_clients
from clair_cli.maths.judge.structure import Structure, find_structure
from clair_cli.maths.judge.thresholds import LONER_RATIO, NORM_SUSPICIOUS, VICTIM
from clair_cli.maths.judge.verdicts import Finding, Verdict, as_trusted, decide

# Verdicts of the clients that are merged whole.
_MERGED = ("benign", "suspicious")
_NO_UPDATE = Finding("no_update", "no update: every delta weight is zero")


@dataclass(frozen=True)
class Judgement:
    """The cohort's outcome and, when judged, every client's verdict.

    Attributes:
        outcome: "judged" or "undetermined".
        code: stable name of the case: "judged", or why the outcome is undetermined.
        text: a sentence about the case, "" if judged.
        remedy: what the user can do, "" if judged.
        structure: groups, duplicates, sharing.
        collaborative: the decomposition, or None when there was nothing to decompose.
        members: the clients found benign or suspicious; they are merged.
        minorities: sets of clients that share something of their own, copies of members included.
        scores: one per client; None when there was nothing to decompose.
        verdicts: one per client, duplicates and empty clients included; () when there was nothing
            to decompose.
    """

    outcome: str
    code: str
    text: str
    remedy: str
    structure: Structure
    collaborative: CollaborativeSet | None
    members: tuple[int, ...]
    scores: tuple[Scores, ...] | None
    verdicts: tuple[Verdict, ...]
    minorities: tuple[Minority, ...] = ()


def needs_cores(structure: Structure) -> str | None:
    """The side ("output" or "input") whose cores `judge` needs; None if it needs none."""
    return structure.stacking if structure.stacking in ("output", "input") else None


def judge(
    evidence: Evidence,
    names: Sequence[str],
    module_names: Sequence[str],
    *,
    structure: Structure | None = None,
    cores: SideCores | None = None,
    trusted: Sequence[int] = (),
) -> Judgement:
    """Judge every client of a cohort.

    Args:
        evidence: of all modules.
        names: of the clients, in the evidence's order; used in sentences only.
        module_names: of the modules, likewise.
        structure: from `find_structure` with the same `trusted`, if it was computed before.
        cores: joint cores of the side that `needs_cores` names.
        trusted: indices of clients whose group is the cohort; they are merged.

    Raises:
        ValueError: the cores are needed and missing.
    """
    structure = find_structure(evidence, trusted) if structure is None else structure
    least = 2 if trusted else 3
    levels = evidence.levels(structure.stacking or "matrix")
    blocked = without_verdict(levels, structure, names, trusted)
    if structure.stacking is None or len(structure.group) < least:
        code, text, remedy = blocked or NOTHING_SHARED
        return Judgement("undetermined", code, text, remedy, structure, None, (), None, ())
    if structure.stacking == "matrix":
        cores = matrix_core(evidence.matrix.value)
    if cores is None:
        raise ValueError(f"stacking {structure.stacking!r} needs the cores of that side")
    result, scores = _weigh(evidence, structure, levels, cores)
    verdicts = _verdicts(structure, result, scores, names, tuple(module_names), trusted)
    minorities = _minorities(evidence, structure, verdicts)
    verdicts = _with_minorities(verdicts, minorities, names)
    verdicts = tuple(
        as_trusted(v, scores[k]) if k in trusted else v for k, v in enumerate(verdicts)
    )
    blocked = blocked or contradicting(trusted, verdicts, names)
    present = sorted((*structure.distinct, *structure.copies))
    members = tuple(k for k in present if verdicts[k].verdict in _MERGED)
    contrast = len(members) < len(present) or bool(structure.duplicates)
    blocked = blocked or little_shared(levels, structure, contrast) or unsolved(result.solution)
    rivals = [m for m in minorities if not trusted or set(m.members) & set(trusted)]
    blocked = blocked or large_minority(rivals, members, structure, names)
    sound = [k for k in members if verdicts[k].influence > 0 and k not in structure.copies]
    if blocked is None and len(sound) < least:
        blocked = (
            "too_few_left",
            f"only {len(sound)} clients agree and have no other finding; {least} are needed",
            "mend or replace the clients left out, or collect more",
        )
    code, text, remedy = blocked or ("judged", "", "")
    outcome = "undetermined" if blocked else "judged"
    return Judgement(
        outcome, code, text, remedy, structure, result, members, scores, verdicts, minorities
    )


def _weigh(
    evidence: Evidence,
    structure: Structure,
    levels: PairLevels,
    cores: SideCores,
) -> tuple[CollaborativeSet, tuple[Scores, ...]]:
    """The decomposition of all clients but duplicates and members of other groups; and the scores
    of all clients."""
    apart = {k for g in structure.others for k in g}
    taking_part = [k for k in structure.distinct if k not in apart]
    one_line = structure.stacking == "matrix"
    result = collaborate(cores, structure.group, taking_part, one_line=one_line)
    if one_line:
        captured = _held_against_as_many(levels, structure.group, result.captured)
        # for the report, one direction per module instead of one for all
        cosines = torch.nan_to_num(evidence.matrix.value, nan=0.0)
        by_module = captured_by_mean(cosines, structure.group)
    else:
        captured = by_module = _above_chance(evidence, structure, result)
    scores = tuple(
        score_clients(evidence, levels, structure.group, captured, by_module, structure.copies)
    )
    bar = LONER_RATIO**2 if one_line else LONER_RATIO  # energy; similarities of sides are energies
    voices = sorted((*taking_part, *structure.copies))
    kept = tuple(k for k in voices if scores[k].captured_ratio >= bar)
    return replace(result, kept=kept), scores


def _verdicts(
    structure: Structure,
    result: CollaborativeSet,
    scores: Sequence[Scores],
    names: Sequence[str],
    module_names: tuple[str, ...],
    trusted: Sequence[int],
) -> tuple[Verdict, ...]:
    apart = {k: g for g in structure.others for k in g}
    for k, first in structure.copies.items():
        if first in apart and not scores[k].alignment.ratio >= VICTIM:
            apart[k] = apart[first]
    signed = structure.stacking == "matrix"
    verdicts = []
    for k in range(len(names)):
        if k in structure.empty:
            verdicts.append(Verdict("suspicious", (_NO_UPDATE,), 0.0))
            continue
        others = some_names(names[j] for j in apart.get(k, ()) if j != k)
        found = decide(scores[k], k in result.kept, others, signed, module_names)
        verdicts.append(as_trusted(found, scores[k]) if k in trusted else found)
    verdicts = _one_vote(structure, verdicts, names)
    for k, first in structure.duplicates.items():
        verdicts[k] = _duplicate(scores[k], verdicts[first], names[first])
    return tuple(verdicts)


def _minorities(
    evidence: Evidence, structure: Structure, verdicts: Sequence[Verdict]
) -> tuple[Minority, ...]:
    """Minorities among the clients that would be merged; those that are nearly the same as one of
    them, which are no minority for that, follow it."""
    merged = [k for k in structure.distinct if verdicts[k].verdict in _MERGED]
    return tuple(
        replace(
            found,
            members=tuple(sorted({
                *found.members,
                *(k for k, first in structure.copies.items() if first in found.members),
            })),
        )
        for found in find_minorities(evidence, merged)
    )  # fmt: skip


def _with_minorities(
    verdicts: Sequence[Verdict],
    minorities: Sequence[Minority],
    names: Sequence[str],
) -> tuple[Verdict, ...]:
    """The verdicts, with those of the minorities' members replaced."""
    result = list(verdicts)
    for found in minorities:
        for k in found.members:
            others = some_names(names[j] for j in found.members if j != k)
            finding = Finding("minority", f"shares with {others} what all others lack")
            result[k] = Verdict("minority", (finding, *result[k].findings), result[k].influence)
    return tuple(result)


def _one_vote(
    structure: Structure, verdicts: Sequence[Verdict], names: Sequence[str]
) -> list[Verdict]:
    """Let clients that are nearly the same share one vote, and make them suspicious."""
    result = list(verdicts)
    for first in sorted(set(structure.copies.values())):
        same = [first, *sorted(k for k, j in structure.copies.items() if j == first)]
        for k in same:
            others = some_names(names[j] for j in same if j != k)
            finding = Finding("near_copy", f"nearly the same as {others}; one vote for them all")
            old = result[k]
            verdict = "suspicious" if old.verdict == "benign" else old.verdict
            result[k] = Verdict(verdict, (*old.findings, finding), old.influence / len(same))
    return result


def _above_chance(evidence: Evidence, structure: Structure, result: CollaborativeSet) -> Tensor:
    """Each client's energy inside the subspace of the others, above the energy that an unrelated
    client has in it by chance; 0 to 1, (n_modules, n_clients)."""
    null = evidence.table(structure.stacking or "").null.diagonal(dim1=1, dim2=2)
    width = (evidence.effective_ranks / null).nanmedian(1).values
    chance = (torch.tensor(result.penalties.subspace_dims, dtype=width.dtype) / width)[:, None]
    return ((result.captured - chance) / (1.0 - chance).clamp_min(1e-12)).clamp_min(0.0)


def _held_against_as_many(levels: PairLevels, group: Sequence[int], captured: Tensor) -> Tensor:
    """Make members and other clients comparable: a member is compared with one client fewer.

    The mean of n clients of mutual similarity rho captures n / (1 + (n - 1) rho) times the
    squared similarity to one of them.
    """
    n = len(group)
    rho = min(1.0, max(0.0, levels.level(group).mean))
    fewer, more = (n - 1) / (1 + (n - 2) * rho), n / (1 + (n - 1) * rho)
    factor = torch.full((captured.shape[1],), fewer / more, dtype=captured.dtype)
    factor[list(group)] = 1.0
    return captured * factor


def _duplicate(scores: Scores, of: Verdict, name: str) -> Verdict:
    ratio = scores["norm_ratio"]
    size = f", norm {ratio:.3g} x the median" if ratio > NORM_SUSPICIOUS else ""
    bad = f", which is {of.verdict}" if of.verdict != "benign" else ""
    finding = Finding("duplicate", f"the same update as {name}{bad}; one vote for both{size}")
    return Verdict("duplicate", (finding,), 0.0)
