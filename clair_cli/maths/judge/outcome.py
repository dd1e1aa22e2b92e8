"""The cases in which a cohort cannot be judged, each in words and with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from clair_cli.maths.evidence.pair_levels import PairLevels
from clair_cli.maths.judge.decompose import Decomposition
from clair_cli.maths.judge.groups import alignment, tighter
from clair_cli.maths.judge.loadings import stand_apart
from clair_cli.maths.judge.minority import Minority
from clair_cli.maths.judge.structure import Structure, far_tighter, next_to_nothing
from clair_cli.maths.judge.thresholds import (
    DUPLICATE_COSINE,
    FAR_TIGHTER,
    LEAST_LEVEL,
    LONER_RATIO,
    MAX_GAP,
    MIN_LEVEL,
    SECOND_GROUP_SHARE,
    SEPARATION,
)
from clair_cli.maths.judge.verdicts import Verdict

# Most client names in one sentence.
_NAMES_SHOWN = 8
# Findings that set a client apart from the group.
_UNLIKE = {"unlike_the_others", "in_a_group", "opposite"}
_TWO_GROUPS_REMEDY = "look at both groups, then leave the members of one out with --exclude"
# A stable code, a sentence, a remedy.
NoVerdict = tuple[str, str, str]
NOTHING_SHARED: NoVerdict = (
    "nothing_shared",
    "nothing is shared: no three clients are more alike than chance",
    "train fewer local steps per round, or merge by hand with --allow-undetermined",
)


def without_verdict(
    levels: PairLevels,
    structure: Structure,
    names: Sequence[str],
    trusted: Sequence[int] = (),
) -> NoVerdict | None:
    """The reason why the clients' similarities allow no verdict; None if they allow one.

    Args:
        levels: similarities in the stacking where sharing was found, or else in `matrix`.
        names: of the clients.
        trusted: clients whose group needs no majority.
    """
    n = len(structure.distinct)
    allow = "merge everybody who is not rejected with --allow-undetermined"
    if not n:
        return "no_updates", "no client has any update: every delta weight is zero", allow
    if n == 1 and structure.duplicates:
        return _same_update(structure)
    if n == 1:
        return "too_few", "1 client: nothing to compare with", allow
    if n == 2:
        return "too_few", "2 clients: can't tell which is wrong", allow
    if structure.stacking is None:
        return NOTHING_SHARED
    two = None if trusted else _two_groups(levels, structure)
    if two is None:
        return None
    other, text = two
    return (
        "two_groups",
        text.format(main=_listed(structure.group, names), other=_listed(other, names)),
        _TWO_GROUPS_REMEDY,
    )


def contradicting(
    trusted: Sequence[int], verdicts: Sequence[Verdict], names: Sequence[str]
) -> NoVerdict | None:
    """The reason for no verdict if a trusted client is unlike the group of the other trusted ones,
    or the only trusted one is unlike everybody; else None."""
    codes = {k: {f.code for f in verdicts[k].findings} for k in trusted}
    apart = [k for k in trusted if "trusted" in codes[k] and codes[k] & _UNLIKE]
    if not apart:
        return None
    distinct = [k for k in trusted if "duplicate" not in codes[k]]
    if len(distinct) == 1:
        return (
            "trusted_alone",
            f"nobody is like {names[apart[0]]}, which is trusted",
            "look at the trusted adapter, or judge by the largest group without --trust",
        )
    others = [k for k in distinct if k not in apart]
    return (
        "trusted_disagree",
        f"trusted clients contradict each other: {_listed(apart, names)} "
        + (f"against {_listed(others, names)}" if others else "are all unlike one another"),
        "find out which of them is wrong, and trust the others only",
    )


def _same_update(structure: Structure) -> NoVerdict:
    """The case that all clients with an update equal one another."""
    n = len(structure.duplicates) + 1
    having = " that have an update" if structure.empty else ""
    return (
        "same_update",
        f"all {n} clients{having} are the same update (cosine {DUPLICATE_COSINE} or more), as "
        "checkpoints or copies of one run are",
        "give one adapter per client, each of its own training; if all started from the last "
        "merged adapter and hardly moved, give that with --previous",
    )


def _two_groups(levels: PairLevels, structure: Structure) -> tuple[tuple[int, ...], str] | None:
    """Another group that leaves the largest one no clear majority, and a sentence with places for
    the two groups, `{main}` and `{other}`."""
    main = structure.group
    level = levels.level(main).mean
    # clients that are nearly the same are one voice
    others = [tuple(k for k in g if k in structure.distinct) for g in structure.others]
    others = [g for g in others if len(g) > 1]
    for group in others:
        apart = levels.separation(main, group) >= SEPARATION
        if not apart and levels.level(group).mean < FAR_TIGHTER * level:
            apart = stand_apart(levels, group, main)
        if not apart and tighter(levels, group, main):
            text = "the largest group, {main}, shares far less than {other}, and does not stand "
            return group, text + "apart from it"
        if far_tighter(levels, group, main) and 2 * len(group) >= len(main):
            return group, "the largest group, {main}, shares next to nothing beside {other}"
    elsewhere = {k for g in structure.others for k in g}
    free = [k for k in structure.distinct if k not in elsewhere]
    with_main = sum(alignment(levels, k, main).ratio >= LONER_RATIO for k in free)
    rivals = [g for g in others if not next_to_nothing(levels, g, main)]
    second = max(rivals, key=len, default=())
    if len(second) > SECOND_GROUP_SHARE * max(with_main, len(main)):
        return second, "two coherent groups of similar size: {main} and {other}"
    return None


def large_minority(
    minorities: Sequence[Minority],
    members: Sequence[int],
    structure: Structure,
    names: Sequence[str],
) -> NoVerdict | None:
    """The reason for no verdict if a minority is nearly as large as what is left of the cohort;
    else None.

    Args:
        members: the clients that would be merged.
    """
    voices = [k for k in members if k in structure.distinct]
    for found in minorities:
        if sum(k in structure.distinct for k in found.members) > SECOND_GROUP_SHARE * len(voices):
            return (
                "two_groups",
                f"two groups of similar size: {_listed(voices, names)}, and "
                f"{_listed(found.members, names)}, which share something of their own",
                _TWO_GROUPS_REMEDY,
            )
    return None


def unsolved(solution: Decomposition) -> NoVerdict | None:
    """The reason for no verdict if the decomposition did not converge; else None."""
    if solution.gap <= MAX_GAP:
        return None
    return (
        "not_converged",
        f"the decomposition did not converge in {solution.n_iter} iterations (duality gap "
        f"{solution.gap:.1e}, at most {MAX_GAP:g} is trusted)",
        "report this cohort: it should not happen",
    )


def little_shared(levels: PairLevels, structure: Structure, contrast: bool) -> NoVerdict | None:
    """The reason for no verdict if the group shares too little to vouch for anybody; else None.

    Args:
        contrast: whether somebody stands out from the group, so that a lower level is enough.
    """
    level = levels.level(structure.group).mean
    if level >= (LEAST_LEVEL if contrast else MIN_LEVEL):
        return None
    number = "" if math.isnan(level) else f" (similarity {level:.3f})"
    return (
        "little_shared",
        f"the clients have almost nothing in common{number}"
        f"{'' if contrast else ', and nobody stands out'}",
        NOTHING_SHARED[2],
    )


def _listed(group: Sequence[int], names: Sequence[str]) -> str:
    return f"{len(group)} ({some_names(names[k] for k in group)})"


def some_names(names: Iterable[str]) -> str:
    """The first names in order, and the number of the others.

    >>> some_names("fbadceghij")
    'a, b, c, d, e, f, g, h and 2 more'
    """
    ordered = sorted(names)
    more = len(ordered) - _NAMES_SHOWN
    return ", ".join(ordered[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
