"""From evidence to verdicts: groups, scores, rule, and the decomposition beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clair_cli.maths.evidence.gather import Evidence
from clair_cli.maths.judge.collaborate import CollaborativeSet, collaborate
from clair_cli.maths.judge.copies import copy_sets
from clair_cli.maths.judge.minority import Minority
from clair_cli.maths.judge.outcome import (
    NoVerdict,
    contradicting,
    some_names,
    unsolved,
    without_verdict,
)
from clair_cli.maths.judge.scores import Scores, score_clients
from clair_cli.maths.judge.sizes import Sizes
from clair_cli.maths.judge.structure import Structure, find_structure
from clair_cli.maths.judge.verdicts import Finding, Verdict, as_trusted, decide, sure

# Verdicts of the clients that are merged whole.
MERGED = ("benign", "suspicious")
_NO_UPDATE = Finding("no_update", "no update: every delta weight is zero")


@dataclass(frozen=True)
class Judgement:
    """The cohort's outcome and, when judged, every client's verdict.

    Attributes:
        outcome: "judged" or "undetermined".
        code: stable name of the case: "judged", or why the outcome is undetermined.
        text: a sentence about the case, "" if judged.
        remedy: what the user can do, "" if judged.
        structure: groups, duplicates, copies.
        collaborative: the decomposition, or None where no group shares whole delta weights.
        members: the clients found benign or suspicious; they are merged.
        scores: one per client; None without a group.
        verdicts: one per client, duplicates and empty clients included; () without a group.
        minorities: sets of clients that share something of their own, copies of members included.
        power: probability that an unrelated client would have been noticed, 0 to 1; None without a
            group.
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
    power: float | None = None


def judge(
    evidence: Evidence,
    names: Sequence[str],
    module_names: Sequence[str],
    *,
    trusted: Sequence[int] = (),
    ranks: Sequence[int] | None = None,
) -> Judgement:
    """Judge every client of a cohort.

    Args:
        evidence: of all modules.
        names: of the clients, in the evidence's order; used in sentences only.
        module_names: of the modules, likewise.
        trusted: indices of clients whose group is the cohort; they are merged.
        ranks: numbers of rank-one components of the clients; None if they are the same.
    """
    structure = find_structure(evidence, trusted, ranks)
    blocked = without_verdict(structure, names, trusted)
    if not structure.groups:
        assert blocked is not None  # there is a reason
        code, text, remedy = blocked
        return Judgement("undetermined", code, text, remedy, structure, None, (), None, ())
    group, signatures = structure.groups[0], structure.signatures
    assert signatures is not None
    stacking = structure.stacking or "matrix"
    scores, sizes = score_clients(evidence, stacking, group, signatures, structure.copies)
    verdicts = _verdicts(structure, scores, sizes, names, tuple(module_names), trusted)
    blocked = blocked or contradicting(trusted, verdicts, names)
    present = sorted((*structure.distinct, *structure.copies))
    members = tuple(k for k in present if verdicts[k].verdict in MERGED)
    blocked = blocked or too_few_left(structure, verdicts, members, trusted)
    result = None
    if structure.stacking == "matrix":
        result = collaborate(evidence.matrix.value, group.members, structure.distinct)
        blocked = blocked or unsolved(result.solution)
    code, text, remedy = blocked or ("judged", "", "")
    return Judgement(
        "undetermined" if blocked else "judged", code, text, remedy, structure, result, members,
        tuple(scores), verdicts, _minorities(structure, verdicts), group.power,
    )  # fmt: skip


def too_few_left(
    structure: Structure,
    verdicts: Sequence[Verdict],
    members: Sequence[int],
    trusted: Sequence[int] = (),
) -> NoVerdict | None:
    """The reason for no verdict if too few clients are left to merge; else None."""
    least = 2 if trusted else 3
    sound = [k for k in members if verdicts[k].influence > 0 and k not in structure.copies]
    if len(sound) >= least:
        return None
    return (
        "too_few_left",
        f"only {len(sound)} clients agree and have no other finding; {least} are needed",
        "mend or replace the clients left out, or collect more",
    )


def _apart(structure: Structure) -> dict[int, tuple[int, ...]]:
    """Client -> the members of its own group or minority, if that is not the cohort's group."""
    sets = [m.members for m in structure.minorities]
    sets += structure.others
    apart = {k: members for members in sets for k in members}
    return apart | {k: apart[j] for k, j in structure.copies.items() if j in apart}


def _verdicts(
    structure: Structure,
    scores: Sequence[Scores],
    sizes: Sizes,
    names: Sequence[str],
    module_names: tuple[str, ...],
    trusted: Sequence[int],
) -> tuple[Verdict, ...]:
    apart = _apart(structure)
    p_of = {k: m.p for m in structure.minorities for k in m.members}
    verdicts = []
    for k in range(len(names)):
        if k in structure.empty:
            verdicts.append(Verdict("suspicious", (_NO_UPDATE,), 0.0))
            continue
        others = some_names(names[j] for j in apart.get(k, ()) if j != k)
        found = decide(scores[k], sizes, k, others, module_names)
        if k in p_of:
            found = sure(found, scores[k], p_of[k])
        verdicts.append(as_trusted(found) if k in trusted else found)
    verdicts = _one_vote(structure, verdicts, names)
    for k, first in structure.duplicates.items():
        verdicts[k] = _duplicate(scores[k], sizes, verdicts[first], names[first])
    return tuple(verdicts)


def _minorities(structure: Structure, verdicts: Sequence[Verdict]) -> tuple[Minority, ...]:
    """The cohort's minorities with the copies of their members, without those whose members have
    another verdict."""
    found = []
    for one in structure.minorities:
        members = {*one.members, *(k for k, j in structure.copies.items() if j in one.members)}
        left = tuple(sorted(k for k in members if verdicts[k].verdict == "minority"))
        found += [Minority(left, one.p)] if left else []
    return tuple(found)


def _one_vote(
    structure: Structure, verdicts: Sequence[Verdict], names: Sequence[str]
) -> list[Verdict]:
    """Let clients that are nearly the same share one vote, as those that are tied, and make them
    suspicious."""
    result = list(verdicts)
    for same in copy_sets(structure.copies):
        for k in same:
            others = some_names(names[j] for j in same if j != k)
            finding = Finding(
                "near_copy", f"nearly the same as {others}; together they count as one client"
            )
            result[k] = _shared_vote(result[k], finding, len(same))
    for k, tied in structure.tied.items():
        text = f"like or unlike {some_names(names[j] for j in tied)} as nobody else is"
        finding = Finding("tied", f"{text}; together they count as one client")
        result[k] = _shared_vote(result[k], finding, 1 + len(tied))
    return result


def _shared_vote(old: Verdict, finding: Finding, clients: int) -> Verdict:
    verdict = "suspicious" if old.verdict == "benign" else old.verdict
    return replace(
        old,
        verdict=verdict,
        findings=(*old.findings, finding),
        influence=old.influence / clients,
        if_merged=old.if_merged / clients,
        if_benign=old.if_benign / clients,
    )


def _duplicate(scores: Scores, sizes: Sizes, of: Verdict, name: str) -> Verdict:
    ratio = scores["norm_ratio"]
    size = f", {ratio:.3g} times the median client's size" if ratio > sizes.whole_cap**2 else ""
    bad = f", which is {of.verdict}" if of.verdict != "benign" else ""
    finding = Finding(
        "duplicate", f"the same update as {name}{bad}; the two count as one client{size}"
    )
    return Verdict("duplicate", (finding,), 0.0)
