"""From evidence to verdicts: structure, decomposition, scores, rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clair_cli.maths.collaborate import Collaborative, collaborate, matrix_core
from clair_cli.maths.evidence import Evidence
from clair_cli.maths.groups import LONER_RATIO
from clair_cli.maths.scores import Scores, captured_energy, score_clients
from clair_cli.maths.structure import (
    SECOND_GROUP_SHARE,
    Structure,
    find_structure,
    pair_levels,
)
from clair_cli.maths.verdicts import Finding, Verdict, decide

# Below this level, a cohort in which nobody stands out shares too little to vouch for anybody.
MIN_LEVEL = 0.05
# A relative duality gap above this is "did not converge".
MAX_GAP = 1e-3


@dataclass(frozen=True)
class Judgement:
    """The cohort's outcome and, when judged, every client's verdict.

    Attributes:
        outcome: "judged" or "undetermined".
        code: which case it is; text: a sentence; remedy: what to do about it.
        structure: groups, duplicates, sharing.
        collaborative: the decomposition, or None when there was nothing to decompose.
        members: the clients found benign or suspicious (they are merged).
        scores: per client, or None where undetermined.
        verdicts: per client; duplicates and empty updates have one too.
    """

    outcome: str
    code: str
    text: str
    remedy: str
    structure: Structure
    collaborative: Collaborative | None
    members: tuple[int, ...]
    scores: tuple[Scores, ...] | None
    verdicts: tuple[Verdict, ...]


def needs_cores(structure: Structure) -> str | None:
    """The side whose one-sided cores `judge` wants, or None when the Grams are enough."""
    return structure.stacking if structure.stacking in ("output", "input") else None


def joint_stack(cores: Sequence[Tensor]) -> Tensor:
    """Cores of all modules, scaled so that a client with an update in each has joint norm one.

    Args:
        cores: one (n_modules, rows, sum_rank) tensor per batch, equal columns.
    """
    rows = max(core.shape[1] for core in cores)
    padded = [torch.nn.functional.pad(c, (0, 0, 0, rows - c.shape[1])) for c in cores]
    stacked = torch.cat(padded)
    scaled: Tensor = stacked / len(stacked) ** 0.5
    return scaled


def judge(
    evidence: Evidence,
    names: Sequence[str],
    module_names: Sequence[str],
    *,
    structure: Structure | None = None,
    stack: Tensor | None = None,
    ranks: Sequence[int] | None = None,
) -> Judgement:
    """Judge every client of a cohort.

    Args:
        evidence: all modules.
        names: of the clients, in the evidence's order (only for words).
        module_names: likewise.
        structure: from `find_structure`, if it was computed before.
        stack, ranks: joint cores of the side that `needs_cores` names.
    """
    structure = find_structure(evidence) if structure is None else structure
    blocked = _undetermined(evidence, structure, names)
    if structure.stacking is None or len(structure.group) < 3:
        code, text, remedy = blocked or _NOTHING
        return Judgement("undetermined", code, text, remedy, structure, None, (), None, ())
    if structure.stacking == "matrix":
        stack, ranks = matrix_core(evidence.matrix.value), [1] * len(names)
    if stack is None or ranks is None:
        raise ValueError(f"stacking {structure.stacking!r} needs the cores of that side")
    apart = {k: g for g in structure.others for k in g}
    taking_part = [k for k in structure.distinct if k not in apart]
    result = collaborate(stack, ranks, structure.group, taking_part)
    levels = pair_levels(evidence, structure.stacking)
    basis = result.kept if len(result.kept) >= 3 else structure.group
    captured = captured_energy(stack, ranks, basis, result.penalties.subspace_dims)
    scores = tuple(score_clients(evidence, levels, structure.group, captured))
    result = replace(
        result,
        kept=tuple(k for k in result.kept if scores[k].captured_ratio >= LONER_RATIO**2),
    )
    verdicts = []
    for k in range(len(names)):
        if k in structure.empty:
            verdicts.append(Verdict("suspicious", (_NO_UPDATE,), 0.0))
            continue
        k_apart = ", ".join(sorted(names[j] for j in apart.get(k, ()) if j != k))
        signed = structure.stacking == "matrix"
        verdicts.append(decide(scores[k], k in result.kept, k_apart, signed, tuple(module_names)))
    for k, first in structure.duplicates.items():
        verdicts[k] = _duplicate(scores[k], verdicts[first], names[first])
    members = tuple(k for k in structure.distinct if verdicts[k].verdict != "contaminated")
    contrast = len(members) < len(structure.distinct) or bool(structure.duplicates)
    blocked = blocked or _weak(evidence, structure, contrast)
    if blocked is None and result.solution.gap > MAX_GAP:
        blocked = (
            "not_converged",
            f"the decomposition did not converge (duality gap {result.solution.gap:.1e})",
            "report this cohort: it should not happen",
        )
    if blocked is None and len([k for k in members if verdicts[k].influence > 0]) < 3:
        blocked = _NOTHING
    outcome, (code, text, remedy) = (
        ("judged", ("judged", "", "")) if blocked is None else ("undetermined", blocked)
    )
    return Judgement(
        outcome, code, text, remedy, structure, result, members, scores, tuple(verdicts)
    )


Blocked = tuple[str, str, str]
_NO_UPDATE = Finding("no_update", "no update: every delta weight is zero")
_NOTHING: Blocked = (
    "nothing_shared",
    "nothing is shared: no three clients are more alike than chance",
    "train fewer local steps per round, or merge by hand with --allow-undetermined",
)


def _duplicate(scores: Scores, of: Verdict, name: str) -> Verdict:
    size = f", norm {scores.norm_ratio:.3g} x the median" if scores.norm_ratio > 2.5 else ""
    bad = f", which is {of.verdict}" if of.verdict != "benign" else ""
    finding = Finding("duplicate", f"the same update as {name}{bad}; one vote for both{size}")
    return Verdict("duplicate", (finding,), 0.0)


def _undetermined(evidence: Evidence, structure: Structure, names: Sequence[str]) -> Blocked | None:
    n = len(structure.distinct)
    allow = "merge everybody who is not rejected with --allow-undetermined"
    if not n:
        return "no_updates", "no client has any update: every delta weight is zero", allow
    if n == 1:
        return "too_few", "1 client: nothing to compare with", allow
    if n == 2:
        return "too_few", "2 clients: can't tell which is wrong", allow
    if structure.stacking is None:
        return _NOTHING
    second = max((len(g) for g in structure.others), default=0)
    if second > SECOND_GROUP_SHARE * len(structure.group):
        group = next(g for g in structure.others if len(g) == second)
        return (
            "two_groups",
            f"two coherent groups of similar size: {_listed(structure.group, names)} and "
            f"{_listed(group, names)}",
            "look at both groups, then leave one out with --exclude",
        )
    return None


def _weak(evidence: Evidence, structure: Structure, contrast: bool) -> Blocked | None:
    """Too little in common to call everybody benign."""
    chosen = next(s for s in structure.sharings if s.stacking == structure.stacking)
    if contrast or chosen.level.mean >= MIN_LEVEL:
        return None
    return (
        "little_shared",
        f"the clients have almost nothing in common (similarity {chosen.level.mean:.3f}), and "
        "nobody stands out",
        _NOTHING[2],
    )


def _listed(group: Sequence[int], names: Sequence[str]) -> str:
    shown = sorted(names[k] for k in group)
    return f"{len(shown)} ({', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''})"
